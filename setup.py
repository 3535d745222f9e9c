"""Where the package's folders are; everything else stands in pyproject.toml.

The stages lie at the top of the repository, and `src/prunion` links them into one package, so that
type checkers and editable installs see plain files. Where git wrote no links (Windows without
developer mode), the same folders are named one by one: a wheel holds the same files either way.
"""

from pathlib import Path

from setuptools import find_packages, setup

STAGES = ("benchmarks", "exporter", "runtime", "trainer")
ROOT = Path(__file__).parent

if all((ROOT / "src" / "prunion" / stage).is_dir() for stage in STAGES):
    packages = find_packages("src")
    folders = {"": "src"}
else:
    rooms = (f"prunion.{s}.{room}" for s in STAGES for room in find_packages(s))
    packages = ["prunion", *(f"prunion.{stage}" for stage in STAGES), *rooms]
    folders = {"prunion": "src/prunion", **{f"prunion.{stage}": stage for stage in STAGES}}

setup(packages=sorted(packages), package_dir=folders)
