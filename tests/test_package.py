"""The package as a whole: what importing costs, which way imports point, what a wheel holds."""

import ast
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ["signatures", "backends", "optimizers", "compiler", "programs"]


def modules_after(statement):
    code = f"import sys; {statement}; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import still", {"dspy", "torch", "transformers", "duckdb", "pydantic"}),
        ("from still import Signature, Predict, Module, LM", {"torch", "transformers", "duckdb"}),
        ("from still import compile, load, Dataset", {"torch", "transformers"}),
        ("import still.cli", {"dspy", "torch"}),
    ],
)
def test_imports_stay_light(statement, absent):
    assert not absent & modules_after(statement)


def test_every_public_name_is_there():
    import still

    for name in still.__all__:
        assert getattr(still, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = still.nonsense


def imported_rooms(path):
    """Rooms that a module imports from, at any depth of its code."""
    package = ["still", *path.relative_to(ROOT).parent.parts]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            full = [*base, *(node.module or "").split(".")]
        elif isinstance(node, ast.Import):
            full = node.names[0].name.split(".")
        else:
            continue
        if full[0] == "still" and len(full) > 1 and full[1] in ROOMS:
            yield full[1]


def test_imports_between_rooms_go_one_way():
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            for other in imported_rooms(path):
                assert ROOMS.index(other) <= ROOMS.index(room), f"{path.relative_to(ROOT)} imports {other}/"


def test_only_the_bridge_imports_dspy():
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            if path != ROOT / "signatures" / "bridge.py":
                text = path.read_text("utf-8")
                assert "import dspy" not in text.replace("`import dspy`", ""), path
                assert "from dspy" not in text, path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy of what git tracks, in a folder of another name."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    copy = tmp_path_factory.mktemp("tree") / "some-clone.x"
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(copy / "out"), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (copy / "out").glob("*.whl")
    return built


def test_a_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    assert all(name == "still" or name.endswith(".dist-info") for name in top)
    for wanted in ("still/py.typed", "still/cli.py", "still/programs/data/helpdesk.csv", "still/signatures/plan.py"):
        assert wanted in names
    assert not any("tests" in name or "benchmarks" in name for name in names)


def test_a_wheel_works_from_any_directory(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = "import still, still.programs.helpdesk as h; print(still.__file__, h.DATA.is_file())"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); {code}"],
        capture_output=True, text=True, cwd=tmp_path, check=True,
    )  # fmt: skip
    where, data = done.stdout.split()
    assert where.startswith(str(tmp_path))
    assert data == "True"
