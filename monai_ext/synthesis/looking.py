"""A patient's scans looked at before anything is made of them: what they are not is refused."""

import logging
from collections.abc import Mapping
from pathlib import Path

from monai_ext.data.volumes import Volume
from monai_ext.inference.checks import Findings, look

logger = logging.getLogger(__name__)


def looked_at(images: Mapping[str, Path | Volume], *, subject: str, trust_names: bool = False) -> Findings:
    """Look at the scans, say what is doubtful, and refuse what is wrong.

    Args:
        images: contrast, as in `MODALITIES`, -> a file or a volume.
        subject: whose they are, for what is said.
        trust_names: go on where only the names, or what they were taken for, are doubted.

    Returns:
        What was seen, of which nothing refuses.

    Raises:
        ValueError: going on would give a wrong picture; the message says what was seen and what to type.
    """
    findings = look(images)
    for message in findings.admitted(trust_names=trust_names):
        logger.warning("%s: %s", subject, message)
    return findings
