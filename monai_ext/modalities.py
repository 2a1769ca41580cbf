"""The vocabulary: the seven contrasts, their one order, and the names that datasets and people give them."""

import difflib
import re

MODALITIES: tuple[str, ...] = ("T1", "T2", "PD", "T1C", "FLAIR", "DWI", "ADC")

_ALIASES = {
    "T1": "t1 t1w t1n t1wi t1pre t1mprage mprage t1mpr t1flash t1native spgr",
    "T2": "t2 t2w t2wi t2tse t2fse",
    "PD": "pd pdw pdwi proton protondensity",
    "T1C": "t1c t1ce t1gd t1gad t1+c t1post t1postcontrast t1cw t1wce t1contrast t1km t1wpost t1wgd t1cwi "
    "cet1 cet1w gdt1 gdt1w",
    "FLAIR": "flair fla t2f t2flair flairw t2wflair flairt2 tirm",
    "DWI": "dwi dw dwib1000 b1000 trace tracew traceb1000 isodwi dwitrace diffusion",
    "ADC": "adc adcmap apparentdiffusioncoefficient",
}
_CANONICAL = {alias: name for name, aliases in _ALIASES.items() for alias in aliases.split()}


def canonical(name: str) -> str:
    """The contrast that a name means, whatever its case and separators: "t1_ce" -> "T1C"."""
    key = re.sub(r"[\s_.\-]+", "", name).lower()
    if key in _CANONICAL:
        return _CANONICAL[key]
    near = difflib.get_close_matches(key, _CANONICAL, n=3, cutoff=0.5)
    hint = ", ".join(f"{alias} (= {_CANONICAL[alias]})" for alias in near) or ", ".join(MODALITIES)
    raise ValueError(f"unknown contrast {name!r}; the nearest known ones: {hint}")
