"""The blocks of docs/asked.md print what stands below them, and each leads to a thread."""

import doctest
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "asked.md"
INTRODUCTION, *QUESTIONS = re.split(r"^### ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
THREAD = re.compile(r"\[([^\]]+)\]\((https://github\.com/[^)]+)\)")
ANSWER = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def blocks(text: str) -> str:
    """Return the code of a text, without the marks around it."""
    return "\n".join(re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL))


def marked(question: str):
    """Return the question as a parameter; what PyTorch compiles first takes seconds."""
    compiled = any(word in question for word in ("torch.compile(", "func.jvp("))
    marks = pytest.mark.slow if compiled else ()
    return pytest.param(question, marks=marks, id=question.splitlines()[0])


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("question", list(map(marked, QUESTIONS)))
def test_the_answer_is_what_is_printed(question):
    code = blocks(INTRODUCTION) + "\n" + blocks(question)
    example = doctest.DocTestParser().get_doctest(code, {}, question.splitlines()[0], None, 0)
    assert len(example.examples) > 4
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=ANSWER)
    runner.run(example, out=report.append)
    assert runner.failures == 0, "".join(report)


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda text: text.splitlines()[0])
def test_a_question_leads_to_its_threads(question):
    threads = THREAD.findall(question)
    assert threads
    for words, address in threads:
        assert re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+/(issues|pull)/\d+", address)
        assert words.split()[-1] == address.rsplit("/", 1)[1]


def test_there_are_many_threads():
    assert len({address for _, address in THREAD.findall(PAGE.read_text("utf-8"))}) >= 80
