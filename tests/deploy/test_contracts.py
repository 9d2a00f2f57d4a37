"""What the package uses of vLLM, DeepSpeed and Ray exists in every version that pyproject.toml allows.

The first, the middle and the last version of each range are read, not installed; `-m long` downloads them once.
"""

import ast
import importlib.util
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest
from packaging.version import Version
from support import wheels
from support.library_source import Library
from support.library_uses import Checker
from support.paths import PACKAGE, ROOT

PACKAGES = ("vllm", "deepspeed", "ray")
FORWARDS = {"vllm.entrypoints.llm.LLM": "vllm.engine.arg_utils.EngineArgs"}  # by **kwargs
FILES = sorted(PACKAGE.rglob("*.py"))
LEAST = {"vllm": 60, "deepspeed": 15, "ray": 150}  # uses that are checked: fewer, and the checks see nothing

# Two ways of receiving weights, one of which a version takes: up to 0.24 vLLM's worker reloads the model and passes
# `load_weights`; later the engine reloads it. What the other way uses is not asked of a version.
ENGINE_RELOADS = (
    "self (vllm.distributed.weight_transfer.base.WeightTransferEngine) has no model_config",
    "layerwise (vllm.model_executor.model_loader.reload.layerwise) has no is_deferred_attention_layer",
    "layerwise (vllm.model_executor.model_loader.reload.layerwise) has no SKIP_LOAD_TENSORS",
)


def engine_keywords() -> set[str]:
    """Keys of the dictionaries in `engine_options`, which is passed to vLLM's `LLM` as keywords."""
    trees = [ast.parse(path.read_text()) for path in FILES if "def engine_options" in path.read_text()]
    [function] = [node for node in ast.walk(trees[0]) if getattr(node, "name", "") == "engine_options"]
    keys = [key for node in ast.walk(function) if isinstance(node, ast.Dict) for key in node.keys]
    keys += [node.slice for node in ast.walk(function) if isinstance(node, ast.Subscript)]
    return {key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str)}


parsed = cache(Library)


def check(package: str, root: Path, files: list[Path] = FILES) -> Checker:
    checker = Checker(Library(root, package) if package == "lib" else parsed(root, package), FORWARDS)
    checker.check(files)
    if package == "vllm":
        other = ENGINE_RELOADS if "load_weights" in received_by_worker(checker.library) else ()
        checker.problems = [problem for problem in checker.problems if not problem.endswith(other)]
    return checker


def received_by_worker(library: Library) -> tuple[str, ...]:
    """Parameters of a transfer engine's `receive_weights`."""
    engine = library.member("vllm.distributed.weight_transfer.base", "WeightTransferEngine")
    assert engine is not None
    method = library.attribute(engine, "receive_weights")
    assert method is not None
    return library.parameters(method).names


def hidden_uses(package: str, root: Path) -> list[str]:
    """What a version lacks of the uses that no syntax tree shows."""
    library = parsed(root, package)
    if package == "vllm":
        engine = library.member("vllm.engine.arg_utils", "EngineArgs")
        assert engine is not None
        known = set(library.parameters(engine).names)
        variables = set(re.findall(r"VLLM_[A-Z0-9_]+", "\n".join(path.read_text() for path in FILES)))
        defined = (root / "vllm" / "envs.py").read_text()
        assert {"dtype", "block_size", "enable_sleep_mode"} <= engine_keywords()
        return sorted((engine_keywords() - known) | {name for name in variables if f'"{name}"' not in defined})
    if package == "deepspeed":
        zero = library.member("deepspeed.runtime.zero.config", "DeepSpeedZeroConfig")
        assert zero is not None
        options = {"stage", "overlap_comm", "reduce_bucket_size", "allgather_bucket_size"}
        return sorted(options - set(library.parameters(zero).names))
    return []


def installed(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parents[1]


@pytest.mark.parametrize("package", PACKAGES)
def test_the_installed_version_has_what_the_package_uses(package: str) -> None:
    checker = check(package, installed(package))
    assert checker.problems == []
    assert checker.checked >= LEAST[package]
    assert hidden_uses(package, installed(package)) == []


@pytest.mark.long
@pytest.mark.parametrize("place", ["first", "middle", "last"])
@pytest.mark.parametrize("package", PACKAGES)
def test_every_allowed_version_has_what_the_package_uses(package: str, place: str, record_property) -> None:
    requirements = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    versions = wheels.released(package, wheels.pinned(requirements, package))
    version = {"first": versions[0], "middle": versions[len(versions) // 2], "last": versions[-1]}[place]
    record_property("version", str(version))
    root = wheels.sources(package, version)
    checker = check(package, root)
    assert checker.problems == [], f"{package} {version}"
    assert checker.checked >= LEAST[package]
    assert hidden_uses(package, root) == [], f"{package} {version}"


LIBRARY = {
    "__init__.py": "from .engine import Engine as Engine\nfrom lib._raylet import Ref\nfrom .shapes import *\n",
    "engine.py": """
from dataclasses import dataclass
from .shapes import Box, Output
class Base:
    def stop(self, hard: bool = False) -> None: ...
class Engine(Base):
    def __init__(self, model: str, *, seed: int = 0) -> None:
        self.box = Box(1)
        self.model = model
    def step(self) -> list[Output]: ...
    @classmethod
    def make(cls) -> "Engine": ...
@dataclass
class Options:
    size: int
    depth: int = 2
class Abstract:
    @abstractmethod
    def load(self): ...
def run(engine, *more, fast=False): ...
""",
    "shapes.py": """
class Box:
    def __init__(self, width: int): ...
class Output:
    text: str
def helper(): ...
""",
}


@pytest.fixture
def library(tmp_path) -> Path:
    for name, text in LIBRARY.items():
        path = tmp_path / "lib" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return tmp_path


RIGHT = """
import lib
from lib import Engine, Ref, helper
from lib.engine import Abstract, Options, run
class Ours:
    def __init__(self) -> None:
        self._engine = Engine("m", seed=1)
    def go(self) -> None:
        self._engine.stop(hard=True)
        self._engine.box
        lib.Engine.make().stop()
        for output in self._engine.step():
            output.text
        more = {"depth": 3}
        Options(1, **more)
        run(1, 2, 3, fast=True)
        helper().anything
        Ref().anything(x=1)
class Loader(Abstract):
    def load(self): ...
def parsed(engine: Engine, anything) -> None:
    engine.stop(True)
    anything.other(y=2)
def with_fallback():
    try:
        from lib.engine import New
    except ImportError:
        return old()
    return New.attribute
def old():
    return Engine("m")
"""

WRONG = {
    "from lib import Missing": "there is no lib Missing",
    "import lib.missing": "there is no  lib.missing",
    "from lib import Engine; Engine('m', sed=1)": "Engine takes no sed",
    "from lib import Engine; Engine()": "Engine also needs model",
    "from lib import Engine; Engine('m', 1)": "Engine takes 1 arguments by position",
    "from lib import Engine; Engine('m').halt()": "has no halt",
    "from lib import Engine; Engine('m').stop(soft=1)": "takes no soft",
    "from lib import Engine; Engine('m').box.height": "has no height",
    "from lib import Engine; Engine.make().step()[0].txt": "has no txt",
    "from lib import Engine; [o.txt for o in sorted(Engine.make().step())]": "has no txt",
    "from lib.engine import Options; Options(1, width=2)": "Options takes no width",
    "from lib.engine import Options; Options(1, **{'deep': 2})": "Options takes no deep",
    "from lib.engine import Options; Options(depth=2)": "Options also needs size",
    "from lib.engine import Abstract\nclass A(Abstract): ...": "wants a method load, which A lacks",
    "from lib import Engine\nclass A(Engine):\n  def go(self): self.rest()": "has no rest",
    "from lib import Engine\ndef f(e: Engine): e.rest()": "has no rest",
    "import lib\nlib.engine.walk()": "has no walk",
    "def f():\n  try:\n    from lib import New\n  except ImportError:\n    return g()\n"
    "def g():\n  import lib\n  lib.gone": "has no gone",
}


def problems(root: Path, text: str) -> list[str]:
    file = root / "ours.py"
    file.write_text(text)
    return check("lib", root, [file]).problems


def test_right_uses_of_a_library_pass(library) -> None:
    assert problems(library, RIGHT) == []


@pytest.mark.parametrize(("text", "problem"), WRONG.items())
def test_a_wrong_use_of_a_library_is_found(library, text: str, problem: str) -> None:
    [found] = problems(library, text)
    assert problem in found


def test_what_only_a_fallback_uses_is_not_asked_of_a_version_that_needs_none(library) -> None:
    text = (
        "def f():\n  try:\n    from lib import Engine\n  except ImportError:\n    return g()\n  Engine('m')\n"
        "def g():\n  h()\ndef h():\n  import lib\n  lib.gone\n"
    )
    assert problems(library, text) == []
    assert len(problems(library, text.replace("import Engine", "import New"))) == 1


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("rollout/engine.py", "worker_extension_cls=", "worker_extension="),
        ("rollout/engine.py", "stop_token_ids=", "stop_tokens="),
        ("rollout/engine.py", ".reset_prefix_cache()", ".reset_prefix_caches()"),
        ("rollout/engine.py", "completion.cumulative_logprob", "completion.sum_logprob"),
        ("models/weight_group.py", "StatelessProcessGroup(rank=", "StatelessProcessGroup(ranks="),
        ("models/weight_group.py", "self._communicator.destroy()", "self._communicator.destroyed()"),
    ],
)
def test_a_wrong_name_in_the_package_is_found(tmp_path, name: str, right: str, wrong: str) -> None:
    text = (PACKAGE / name).read_text()
    assert right in text
    file = tmp_path / "changed.py"
    file.write_text(text.replace(right, wrong))
    found = check("vllm", installed("vllm"), [file]).problems
    [name] = re.findall(r"\w+", wrong)[-1:] if "." in wrong else re.findall(r"\w+", wrong)[:1]
    assert [problem for problem in found if name in problem], found


def test_versions_are_the_first_the_middle_and_the_last_of_a_range(monkeypatch) -> None:
    listed = (
        "vllm (0.33.0)\nAvailable versions: 0.33.0, 0.32.1, 0.32.0, 0.30.0, 0.28.1, 0.28.0, 0.25.0, 0.24.0, 0.23.0\n"
    )
    monkeypatch.setattr(wheels, "_pip", lambda *_: listed)
    found = wheels.released.__wrapped__("vllm", wheels.pinned(["vllm>=0.24,<0.33", "ray>=2"], "vllm"))
    assert found == [Version("0.24.0"), Version("0.28.0"), Version("0.32.1")]
