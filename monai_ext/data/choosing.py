"""Which file is a visit's T1 where several could be: not a guess, but the pattern of the person who asks."""

import fnmatch
import glob
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from monai_ext.data.datalist import SubjectError, file_size
from monai_ext.data.naming import EXTENSIONS, LABEL
from monai_ext.modalities import MODALITIES, canonical

KINDS = (*MODALITIES, LABEL)


def matches(path: Path, pattern: str, root: Path) -> bool:
    """Say whether a file's path fits a shell pattern, case and all; `*` goes over folders too.

    Args:
        path: of the file, below `root`.
        pattern: such as "*acq-mprage*", held against the path relative to `root`, with forward slashes.
        root: the dataset's folder.

    Returns:
        Whether the whole relative path fits.

    Raises:
        ValueError: the path is not below `root`.
    """
    return fnmatch.fnmatchcase(path.relative_to(root).as_posix(), pattern)


class Choices:
    """Patterns for a contrast or the label, the preferred first, as in "T1=*acq-mprage*".

    A pattern picks among the files that bear its contrast's name. One that fits no such file in the whole
    dataset picks among those that bear none, and so says what they are: "label=*seg_auto_fusion_mav*".

    Args:
        texts: each CONTRAST=PATTERN, or label=PATTERN.

    Raises:
        ValueError: a text of another form, or a contrast that is not known.
    """

    def __init__(self, texts: Sequence[str] = ()) -> None:
        self.patterns: dict[str, list[str]] = defaultdict(list)
        for text in texts:
            kind, _, pattern = text.partition("=")
            if not pattern:
                raise ValueError(f'--choose must be CONTRAST=PATTERN, such as "T1=*acq-mprage*", got {text!r}')
            self.patterns[LABEL if kind.lower() == LABEL else canonical(kind)].append(pattern)
        self._of_unnamed: set[tuple[str, str]] = set()

    def look_at(self, visits: Iterable[Mapping[str, Sequence[Path]]], *, root: Path) -> None:
        """See all the files that there are, so that a pattern that fits none of them is refused.

        Args:
            visits: for each visit its files, by the contrast that their names say, "" for none.
            root: the dataset's folder, which the patterns' paths start from.

        Raises:
            ValueError: a pattern fits no file.
        """
        visits = list(visits)
        for kind, patterns in self.patterns.items():
            for pattern in patterns:
                named, unnamed = (
                    any(matches(file, pattern, root) for visit in visits for file in visit.get(which, ()))
                    for which in (kind, "")
                )
                if not named and not unnamed:
                    raise ValueError(f'--choose "{kind}={pattern}" fits no file under {root} that could be {kind}')
                if not named:
                    self._of_unnamed.add((kind, pattern))

    def pick(self, name: str, files: Mapping[str, Sequence[Path]], *, root: Path) -> dict[str, Path]:
        """Pick one file for each contrast of a visit.

        Args:
            name: of the visit, for the message.
            files: those that could be each contrast.
            root: the dataset's folder.

        Returns:
            contrast -> file; "label" too, where there is one.

        Raises:
            SubjectError: several files could be one contrast, and how to choose; or one is empty, or its name is no
                text.
        """
        picked, doubts = {}, []
        for kind in KINDS:
            candidates = list(files.get(kind, ()))
            for pattern in self.patterns.get(kind, ()):
                pool = files.get("" if (kind, pattern) in self._of_unnamed else kind, ())
                chosen = [file for file in pool if matches(file, pattern, root)]
                if chosen:
                    candidates = chosen
                    break
            if len(candidates) > 1:
                paths = [file.relative_to(root).as_posix() for file in candidates]
                how = f'--choose "{kind}={tell_apart(paths)}"'
                listed = [f"  {path}" for path in paths[:6]] + ["  ..."] * (len(paths) > 6)
                doubts += [f"{len(paths)} files could be its {kind}, choose with {how}:", *listed]
            elif candidates:
                picked[kind] = candidates[0]
        if doubts:
            raise SubjectError(name, None, "\n".join(doubts))
        for path in picked.values():
            if not file_size(path, subject=name):
                raise SubjectError(name, path, "is empty (0 bytes); copy or download it again")
            try:
                str(path).encode()
            except UnicodeEncodeError:
                raise SubjectError(name, path, "the file's name is not UTF-8 text; rename it") from None
        return picked


def tell_apart(paths: Sequence[str]) -> str:
    """Make a pattern that fits one of the paths and none of the others, the first NIfTI that is packed if there is
    one.

    Args:
        paths: one or more, different, relative to the dataset's folder.

    Returns:
        An ending or a part of the name that it alone has, such as "*acq-mprage*"; where it has none, the path itself.

    Example:
        >>> tell_apart(["sub-01_acq-mprage_T1w.nii.gz", "sub-01_acq-tse_T1w.nii.gz"])
        '*acq-mprage*'
    """
    path = next((path for path in paths if path.endswith(".nii.gz")), paths[0])
    patterns = [f"*{end}" for end in EXTENSIONS if path.endswith(end)][:1]
    patterns += [f"*{part}*" for part in re.split(r"[_/]", path) if not glob.has_magic(part)]
    for pattern in patterns:
        if fnmatch.filter(paths, pattern) == [path]:
            return pattern
    return glob.escape(path)
