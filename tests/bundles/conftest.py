"""What the bundles' tests share: every bundle by its folder, phantoms prepared once, one short training a bundle."""

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from filelock import FileLock
from running import BUNDLES, COMPACT, TINY, here, options, python, shared_folder


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "bundle" in metafunc.fixturenames:
        metafunc.parametrize("bundle", BUNDLES, ids=[path.name for path in BUNDLES], scope="session")


@pytest.fixture(scope="session")
def bundle_run() -> Callable[..., subprocess.CompletedProcess[str]]:
    """python -m monai.bundle run, with configs by name: the bundle's own, or a path; `anew` in a Python of its own."""

    def run(
        bundle: Path,
        *configs: str | Path,
        cwd: Path | None = None,
        check: bool = True,
        verb: Sequence[str] = ("run",),
        anew: bool = False,
        **ids: object,
    ) -> subprocess.CompletedProcess[str]:
        files = [str(bundle / "configs" / f"{one}.json") if isinstance(one, str) else str(one) for one in configs]
        pairs = {"bundle_root": bundle, "config_file": files if len(files) > 1 else files[0], **ids}
        words = ("monai.bundle", *verb, *options(pairs))
        return python("-m", *words, cwd=cwd, check=check) if anew else here(*words, cwd=cwd, check=check)

    return run


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five coarse phantoms with every contrast, prepared; `raw` beside them are their scans."""
    folder = shared_folder(tmp_path_factory, "phantoms")
    folder.mkdir(exist_ok=True)
    with FileLock(folder / ".lock"):
        if not (folder / "prepared" / "datalist.json").exists():
            contrasts = "T1,T2,PD,T1C,FLAIR,DWI,ADC"
            raw = folder / "raw"
            here("monai_ext", "phantom", "--out", raw, "--site", "glioma", "--subjects", 5, "--spacing", 6,
                   "--contrasts", contrasts, "--layout", "folder")  # fmt: skip
            here("monai_ext", "index", "--root", raw, "--out", raw / "index.json", "--split", "2/1/2")
            here("monai_ext", "prepare", "--datalist", raw / "index.json", "--out", folder / "prepared",
                   "--size", 32, "--brain-mask", "otsu")  # fmt: skip
    return folder / "prepared"


@pytest.fixture(scope="session")
def raw(prepared: Path) -> Path:
    """The scans that `prepared` was made from, a folder a subject."""
    return prepared.parent / "raw"


@pytest.fixture(scope="session")
def trained_of(prepared: Path, bundle_run: Callable, tmp_path_factory: pytest.TempPathFactory) -> Callable:
    """The output folder of a short compact training of a bundle, made once; its weights are `model.pt` there."""

    def of(bundle: Path) -> Path:
        folder = shared_folder(tmp_path_factory, f"trained_{bundle.name}")
        folder.mkdir(exist_ok=True)
        with FileLock(folder / ".lock"):
            if not (folder / "done").exists():
                ids = {"dataset_dir": prepared, "output_dir": folder, "weights": folder / "model.pt", **TINY}
                bundle_run(bundle, "train", COMPACT, **ids, epochs=1, batch_size=4, tracking="mlflow")
                (folder / "done").touch()
        return folder

    return of


@pytest.fixture(scope="session")
def trained(bundle: Path, trained_of: Callable) -> Path:
    """`trained_of` each bundle."""
    return trained_of(bundle)
