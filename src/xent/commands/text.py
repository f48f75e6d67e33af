"""Text files as two streams of tokens, with the bytes accounted for.

A token is a word (names are split at underscores), a number or a run of punctuation, each with the
space before it, or a run of white space. In scripts without spaces between words, such as Chinese
and Thai, a token is a character. Joined, the tokens are the text again. The classes are the tokens
that occur twice or more in the training part. Any other token is coded as ``<unk>``, then the bytes
of its spelling, then a NUL byte, at 8 bits each. Text that holds NUL bytes is refused. So the code
can be decoded, and bits per byte is the length of a true code.
"""

from __future__ import annotations

import hashlib
import math
import re
import sysconfig
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .console import UserError

# Characters of scripts that have no spaces between words. In Unicode Annex 14 these are the classes
# where lines may break between any two characters (ID, CJ) or by a dictionary (SA), no surrogates.
UNSPACED = (
    "\u0e00-\u0fff"  # Thai, Lao, Tibetan
    "\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f"  # Myanmar
    "\u1780-\u17ff\u19e0-\u19ff"  # Khmer
    "\u1950-\u19df\u1a20-\u1aaf\uaa80-\uaadf"  # Tai Le, New Tai Lue, Tai Tham, Tai Viet
    "\u1b00-\u1b7f\ua980-\ua9df"  # Balinese, Javanese
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3031-\u3035\u3038-\u303c"  # Chinese: radicals, marks
    "\u3041-\u30fa\u30fc-\u312f\u31a0-\u31bf\u31f0-\u31ff"  # kana, Bopomofo
    "\u3400-\u4dbf\u4e00-\ua4cf\uf900-\ufaff\uff66-\uff9f"  # Chinese, Yi, kana of half width
    "\U00011700-\U0001174f\U00016fe0-\U00018d8f\U0001b000-\U0001b2ff"  # Ahom, Tangut, old kana
    "\U00020000-\U0003fffd"  # Chinese
)
UNSPACED_TOKEN = re.compile(f"[{UNSPACED}]")
TOKEN = re.compile(
    rf"[{UNSPACED}]| ?[^\W\d_{UNSPACED}]+| ?_+| ?[^\D{UNSPACED}]+|\s*\n *"
    rf"| ?[^\w\s{UNSPACED}]+|\s+"
)
UNKNOWN, END = 0, 1  # the first two classes: a token without a class, the end of a file
SPECIAL = ["<unk>", "<end>"]  # the pattern never matches these as one token
SUFFIXES = {
    ".c", ".cc", ".cpp", ".css", ".go", ".h", ".hpp", ".html", ".java", ".js", ".md", ".py", ".pyi",
    ".rs", ".rst", ".sh", ".tex", ".toml", ".ts", ".txt", ".xml", ".yaml", ".yml",
}  # fmt: skip
VALIDATION_SHARE = 0.05
PIECE = 1024  # tokens
MIN_FILES_TO_SPLIT = 20  # with fewer, whole files cannot make up 5 % of the text


@dataclass(frozen=True)
class Corpus:
    """Training and validation text as classes.

    Attributes:
        train: classes of the training part, int32, ``(tokens,)``.
        valid: classes of the validation part.
        valid_bytes: how many bytes of text each validation token stands for.
        vocabulary: the token of each class.
        counts: how often the training part has each class.
        fingerprint: a hash of the text of all files.
        files: number of different files.
        skipped: files in folders that are not text.
    """

    train: Tensor
    valid: Tensor
    valid_bytes: Tensor
    vocabulary: list[str]
    counts: Tensor
    fingerprint: str
    files: int
    skipped: list[Path]


def read_corpus(
    paths: Sequence[str], seed: int, max_vocabulary: int, bar: Callable[..., Any]
) -> Corpus:
    """Read, tokenise and split.

    Args:
        paths: files and folders; none means the sources of Python's standard library.
        seed: decides which files are for validation.
        max_vocabulary: largest number of classes.
        bar: makes a progress bar, with the keyword arguments of tqdm.

    Returns:
        The :class:`Corpus`.

    Raises:
        UserError: for paths that cannot be read, and if there is no text.
    """
    files = find_files(paths)
    ids: defaultdict[str, int] = defaultdict()
    ids.default_factory = ids.__len__  # a new token gets the next free number
    streams, skipped = _read_streams(files, frozenset(map(Path, paths)), ids, bar)
    if not streams:
        raise UserError(f"no text in {_names(paths)}")
    # Ordered by a hash of the content, so that places and names of the files do not matter.
    ordered = [streams[d] for d in sorted(streams, key=lambda d: _hash(seed, d))]
    train, valid = split(ordered)
    fingerprint = hashlib.sha256("".join(sorted(streams)).encode()).hexdigest()
    return _classify(
        shuffle(train, seed), torch.cat(valid), list(ids), max_vocabulary, fingerprint,
        len(streams), skipped,
    )  # fmt: skip


def find_files(paths: Sequence[str]) -> list[Path]:
    """The named files, and the files with a text suffix in the named folders, sorted."""
    if not paths:
        return _standard_library()
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = (p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            found += sorted(p for p in inside if not _hidden(p.relative_to(path)))
        elif path.exists():
            found.append(path)
        else:
            raise UserError(f"{path}: no such file or folder")
    if not found:
        raise UserError(f"no text files (*.txt, *.py, *.md, ...) in {_names(paths)}")
    return found


def split(streams: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Split off about 5 % for validation: whole files, or with few files the end of each."""
    limit = VALIDATION_SHARE * sum(map(len, streams))
    train, valid, size = [], [], 0
    for stream in streams:
        if size + len(stream) <= limit:
            valid.append(stream)
            size += len(stream)
        else:
            train.append(stream)
    if len(streams) < MIN_FILES_TO_SPLIT or not valid:
        cuts = [len(s) - int(VALIDATION_SHARE * len(s)) for s in streams]
        train = [s[:cut] for s, cut in zip(streams, cuts, strict=True)]
        valid = [s[cut:] for s, cut in zip(streams, cuts, strict=True)]
    return train, valid


def shuffle(streams: Sequence[Tensor], seed: int) -> Tensor:
    """Join long pieces in random order, so that no lane stays in one file for long."""
    pieces = [piece for stream in streams for piece in stream.split(PIECE)]
    order = torch.randperm(len(pieces), generator=torch.Generator().manual_seed(seed))
    return torch.cat([pieces[i] for i in order.tolist()])


def bits_per_byte(nats: float, classes: Tensor, sizes: Tensor) -> float:
    """Length of the code, with the spelling of unknown tokens, in bits per byte of text.

    Args:
        nats: sum of the loss over the tokens.
        classes: of the tokens.
        sizes: how many bytes of text each token stands for.
    """
    spelling = 8 * (sizes[classes == UNKNOWN] + 1).sum().item()  # each byte, and NUL at the end
    return (nats / math.log(2) + spelling) / max(1, int(sizes.sum()))


def _standard_library() -> list[Path]:
    """Return the files of the standard library without its tests, which are half of it."""
    root = Path(sysconfig.get_path("stdlib"))
    left_out = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
    files = (p for p in root.rglob("*.py") if not left_out & set(p.relative_to(root).parts))
    return sorted(files)


def _read_streams(
    files: list[Path],
    named: frozenset[Path],
    ids: defaultdict[str, int],
    bar: Callable[..., Any],
) -> tuple[dict[str, Tensor], list[Path]]:
    """Return token numbers of each file by the hash of its content, so that copies count once."""
    streams: dict[str, Tensor] = {}
    skipped: list[Path] = []
    total = sum(path.stat().st_size for path in files)
    with bar(total=total, desc="reading", unit="B", unit_scale=True, leave=False) as progress:
        for data in each_text(files, named, skipped):
            if data:
                numbers = array("i", map(ids.__getitem__, [*TOKEN.findall(data.decode()), ""]))
                streams[_hash(data)] = torch.frombuffer(numbers, dtype=torch.int32)
            progress.update(len(data))
    return streams, skipped


def each_text(files: list[Path], named: frozenset[Path], skipped: list[Path]) -> Iterator[bytes]:
    """The bytes of the files; those that are not text and were not named are skipped."""
    for path in files:
        try:
            data = read_text(path)
        except UserError:
            if path in named:
                raise
            skipped.append(path)
        else:
            yield data


def classify(texts: Iterable[bytes], vocabulary: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Texts in the classes of a vocabulary, and how many bytes each token stands for."""
    ids = {token: k for k, token in enumerate(vocabulary)}
    classes, sizes = array("i"), array("i")
    for data in texts:
        tokens = TOKEN.findall(data.decode())
        classes.extend([*(ids.get(token, UNKNOWN) for token in tokens), END])
        sizes.extend([*(len(token.encode()) for token in tokens), 0])
    return torch.tensor(classes, dtype=torch.int32), torch.tensor(sizes, dtype=torch.int32)


def read_text(path: Path) -> bytes:
    """The bytes of a text file."""
    try:
        data = path.read_bytes()
        data.decode()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text") from None
    if 0 in data:
        raise UserError(f"{path}: a binary file (it has NUL bytes)")
    return data


def _classify(
    train: Tensor,
    valid: Tensor,
    tokens: list[str],
    max_vocabulary: int,
    fingerprint: str,
    files: int,
    skipped: list[Path],
) -> Corpus:
    """Turn token numbers into classes, the frequent first."""
    counts = torch.bincount(train, minlength=len(tokens))
    end = tokens.index("")  # stands at the end of every file
    counts[end] = 0
    # Ties go by spelling: numbers in order of appearance would depend on the names of the files.
    seen = counts.tolist()
    often = (i for i, n in enumerate(seen) if n >= 2)
    kept = sorted(often, key=lambda i: (-seen[i], tokens[i]))[: max_vocabulary - len(SPECIAL)]
    classes = torch.full((len(tokens),), UNKNOWN, dtype=torch.int32)
    classes[kept] = torch.arange(len(SPECIAL), len(SPECIAL) + len(kept), dtype=torch.int32)
    classes[end] = END
    vocabulary = SPECIAL + [tokens[i] for i in kept]
    sizes = torch.tensor([len(token.encode()) for token in tokens], dtype=torch.int32)
    train_classes = classes[train]
    return Corpus(
        train_classes, classes[valid], sizes[valid], vocabulary,
        torch.bincount(train_classes, minlength=len(vocabulary)), fingerprint, files, skipped,
    )  # fmt: skip


def _hash(*parts: object) -> str:
    data = parts[0] if isinstance(parts[0], bytes) else " ".join(map(str, parts)).encode()
    return hashlib.sha256(data).hexdigest()


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == "site-packages" for part in path.parts)


def _names(paths: Sequence[str]) -> str:
    return ", ".join(paths) or "Python's standard library"
