"""What `monailabel start_server --app monai_ext/serve/label_app --studies FOLDER` starts.

--conf bundles FOLDER    the collection, or one bundle of it (this repository's)
--conf models FOLDER     weights as FOLDER/<bundle>/model.pt, in place of the bundles' own models/model.pt;
                         what else of .pt lies there is a model <bundle>-<name>

What a client trains is served in place of either, and replaces neither: it lies in .training among the studies.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException
from monailabel.app import app as server
from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.train import TrainTask
from starlette.middleware import Middleware

from monai_ext import __version__
from monai_ext.catalogue import bundles_folder
from monai_ext.serve.label_app.gatekeeper import Gatekeeper
from monai_ext.serve.label_app.studies import Studies
from monai_ext.serve.label_app.synthesis_task import Synthesis
from monai_ext.serve.label_app.training_task import Training, trained_weights
from monai_ext.synthesis.options import INFERENCE, OF_IMAGES

logger = logging.getLogger(__name__)


class SynthesisApp(MONAILabelApp):
    """Missing contrasts, synthesised for the studies of one folder by every bundle that has weights.

    Args:
        app_dir: this app's.
        studies: the folder of studies.
        conf: what the command line's --conf says, see the top of this module.
    """

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str]) -> None:
        self.bundles = bundles_of(Path(conf.get("bundles") or bundles_folder()))
        models = conf.get("models")
        self.weights = {
            name: Path(models) / name / "model.pt" if models else root / "models" / "model.pt"
            for name, root in self.bundles.items()
        }
        super().__init__(
            app_dir,
            studies,
            dict(conf),
            name=f"MRI synthesis {__version__}",
            description="SYNTHETIC contrasts from those that were acquired; research only, not to be used clinically",
            version=__version__,
        )
        guard(server)

    def init_datastore(self) -> Datastore:
        """Open the studies.

        Returns:
            The studies below the server's `--studies`.
        """
        return Studies(self.studies, extensions=settings.MONAI_LABEL_DATASTORE_FILE_EXT)

    def init_infers(self) -> dict[str, InferTask]:
        """Make an inference task for each bundle, and one for each file of other weights beside its own.

        Returns:
            bundle's name, or <bundle>-<file's name> -> task, those of bundles without weights too.
        """
        studies = Path(self.studies)
        tasks: dict[str, InferTask] = {}
        for name, root in self.bundles.items():
            own = self.weights[name]
            tasks[name] = Synthesis(root, weights=own, trained=trained_weights(studies, name))
            others = (path for path in sorted(own.parent.glob("*.pt")) if path != own)
            tasks |= {f"{name}-{path.stem}": Synthesis(root, weights=path) for path in others}
        return tasks

    def init_trainers(self) -> dict[str, TrainTask]:
        """Make a training task for each bundle.

        Returns:
            bundle's name -> task.
        """
        return {name: Training(root) for name, root in self.bundles.items()}

    def infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Synthesise for one image of the studies.

        Args:
            request: "model" and "image", and options.
            datastore: another one than the app's.

        Returns:
            MONAI Label's answer.

        Raises:
            HTTPException: 404 or 400 with the reason, for a request that cannot be served.
        """
        store = datastore or self.datastore()
        model, image = request.get("model"), str(request.get("image"))
        if model not in self._infers:
            raise HTTPException(404, f"there is no bundle {model!r}: there are {', '.join(self._infers)}")
        uploaded = Path(image).is_absolute()  # the endpoint's own copy: what a client says is no path, see Gatekeeper
        if not uploaded and not store.get_image_uri(image):
            names = ", ".join(store.list_images()[:8]) or "none"
            raise HTTPException(404, f"there is no image {image!r} among the studies: there are {names}")
        options = {key: value for key, value in request.items() if key in (*INFERENCE, *OF_IMAGES)}
        own = {"model": model, "image": image, "uploaded": uploaded, "save_label": False}
        result: dict[str, Any] = super().infer({**options, **own}, store)
        if isinstance(store, Studies):
            store.refresh()  # what was synthesised is there to be looked at
        return result

    def train(self, request: dict[str, Any]) -> dict[str, Any]:
        """Train a bundle on the studies.

        Args:
            request: "model", and options.

        Returns:
            What the bundle's `Training` gives, and MONAI Label adds.

        Raises:
            HTTPException: 404, there is no such bundle.
        """
        model = request.get("model")
        if model not in self._trainers:
            raise HTTPException(404, f"there is no bundle {model!r}: there are {', '.join(self._trainers)}")
        done: dict[str, Any] = super().train(request)
        return done


def guard(server: FastAPI) -> None:
    """Put the gatekeeper before the endpoints, once: the server has built what a request goes through by now.

    Args:
        server: MONAI Label's; it is changed.
    """
    if not any(middleware.cls is Gatekeeper for middleware in server.user_middleware):
        server.user_middleware.append(Middleware(Gatekeeper))
        server.middleware_stack = server.build_middleware_stack()


def bundles_of(folder: Path) -> dict[str, Path]:
    """Find the bundles below a folder, or the one that it is.

    Args:
        folder: a bundle, which has `configs`, or a folder of which each member with `configs` is one.

    Returns:
        name -> folder.

    Raises:
        ValueError: it is none and holds none.
    """
    roots = [folder] if (folder / "configs").is_dir() else sorted(path.parent for path in folder.glob("*/configs"))
    if not roots:
        raise ValueError(f"bundles must be a bundle or a folder of bundles, got {folder}")
    return {root.name: root for root in roots}
