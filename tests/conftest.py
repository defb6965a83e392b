"""Eight fake CPU devices for every test, and programs that compile fast rather than run fast."""

import atexit
import os
import shutil
import tempfile

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# torch's threads wait for each other by spinning: on busy cores two take many times as long as one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tests compile much and run little. Programs that several tests or their subprocesses share compile once.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes=true"
)
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # processes that share the tests inherit it
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="t0jax-programs-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


@pytest.fixture(scope="session")
def release(tmp_path_factory):
    """promptsource 0.2.3's templates: where they are already, else fetched by pip."""
    from scripts import prompts
    from t0jax.data.templates import TemplateError, prompts_dir

    try:
        return prompts_dir()
    except TemplateError:
        pass
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("T0JAX_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        try:
            return prompts.fetch()
        except prompts.FetchError as error:
            pytest.skip(f"promptsource's templates cannot be fetched: {str(error)[:200]}")


@pytest.fixture(scope="session")
def pets(tmp_path_factory):
    """Folder of a small data set with prompts and a vocabulary (tests/pets.py)."""
    from pets import make_pets

    root = tmp_path_factory.mktemp("pets")
    make_pets(root)
    return root


@pytest.fixture
def pets_evaluator(pets, monkeypatch):
    """Builds an evaluator of some of the prompts."""
    from pets import evaluations

    return evaluations(pets, monkeypatch)
