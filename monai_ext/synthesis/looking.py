"""A patient's scans looked at before anything is made of them: what they are not is refused."""

import logging
from collections.abc import Mapping
from pathlib import Path

from monai_ext.data.volumes import Volume
from monai_ext.inference.checks import Findings, look
from monai_ext.inference.recogniser import WEIGHTS

logger = logging.getLogger(__name__)


def looked_at(images: Mapping[str, Path | Volume], *, subject: str, trust_names: bool = False) -> Findings | None:
    """What was seen of the scans; None where the recogniser's weights are not installed.

    Args:
        images: contrast, as in `MODALITIES`, -> a file or a volume.
        subject: whose they are, for what is said.
        trust_names: go on where only the names, or what they were taken for, are doubted.

    Returns:
        What was seen, of which nothing refuses.

    Raises:
        ValueError: going on would give a wrong picture; the message says what was seen and what to type.
    """
    if not WEIGHTS.is_file():
        return None
    findings = look(images)
    refused = findings.refusals(trust_names=trust_names)
    if refused:
        raise ValueError("; ".join(finding.message for finding in refused))
    for finding in findings.warnings(trust_names=trust_names):
        logger.warning("%s: %s", subject, finding.message)
    return findings
