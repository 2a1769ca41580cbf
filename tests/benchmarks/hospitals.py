"""PMM-Synth on four phantom hospitals: one model for all, with and without personalisation, against a model for each.

    for SITE in glioma immune brats stroke; do
        python -m monai_ext phantom --out raw/$SITE --site $SITE --subjects 12 --spacing 2 --jobs 2
        python -m monai_ext index --root raw/$SITE --out $SITE.json --split 8/1/3
        python -m monai_ext prepare --datalist $SITE.json --out data/$SITE --size 96 --jobs 2 \\
            --brain-mask ".brain/{name}.nii.gz"
    done
    python tests/benchmarks/hospitals.py --dataset_dir data --out out/hospitals

Each seed trains all six at the laptop's size. Printed: the mean PSNR in the brain over the tasks of a site, from one
contrast and from all but one, a row a seed and model; the personal one a second time as if nobody had named the site.
Then the means over the seeds, and what personalisation, no name instead of none learnt (at least -0.3 dB is asked) and
the other hospitals are worth. The single models see as many epochs of their own data. Other ids go to the training.
"""

import argparse
import csv
from collections.abc import Mapping
from pathlib import Path
from statistics import mean

from study import trained_and_evaluated

from monai_ext.data.datalist import read_datalist

JOINT: dict[str, dict[str, object]] = {"all, personal": {}, "all, plain": {"personalized": "false"}}
UNNAMED = "all, unnamed"  # the personal one, no site named
ALONE = "one each"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", type=Path, required=True, help="a prepared folder a site")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args, more = parser.parse_known_args()
    training = dict(zip((name[2:] for name in more[::2]), more[1::2], strict=True))
    lists = {path.parent.name: path.resolve() for path in sorted(args.dataset_dir.glob("*/datalist.json"))}
    found: dict[str, dict[str, list[float]]] = {name: {site: [] for site in lists} for name in (*JOINT, UNNAMED, ALONE)}
    print("seed  model          " + "".join(f"{site:>9}" for site in lists))
    for seed in args.seeds:
        for name, ids in JOINT.items():
            folder = args.out.resolve() / f"{name.replace(', ', '-')}-{seed}"
            row(found[name], seed, name, figures(folder, lists, args.dataset_dir, ids, {**training, "seed": seed}))
        folder = args.out.resolve() / f"all-personal-{seed}"
        nobodys = figures(folder, lists, args.dataset_dir, {}, {**training, "seed": seed}, site="none", run="unnamed")
        row(found[UNNAMED], seed, UNNAMED, nobodys)
        own: dict[str, float] = {}
        for site, path in lists.items():
            folder = args.out.resolve() / f"{site}-{seed}"
            own |= figures(folder, {site: path}, args.dataset_dir, {}, {**training, "seed": seed})
        row(found[ALONE], seed, ALONE, own)
    for name, sites in found.items():
        print(f"mean  {name:15}" + "".join(f"{mean(values):>9.2f}" for values in sites.values()))
    for what, one, other in (
        ("personalisation", "all, personal", "all, plain"),
        ("no name", UNNAMED, "all, plain"),
        ("the other hospitals", "all, personal", ALONE),
    ):
        worth = [mean(found[one][site]) - mean(found[other][site]) for site in lists]
        print(f"{what}: " + ", ".join(f"{site} {value:+.2f} dB" for site, value in zip(lists, worth, strict=True)))


def figures(
    folder: Path,
    lists: Mapping[str, Path],
    data: Path,
    ids: Mapping[str, object],
    training: Mapping[str, object],
    *,
    run: str = "run",
    **evaluation: object,
) -> dict[str, float]:
    """The mean PSNR over the tasks of each of these sites, in the folder `run` of the training's."""
    contrasts = {name for path in lists.values() for one in read_datalist(path).splits["test"] for name in one.images}
    order = [name for name in ("T1", "T2", "T1C", "FLAIR", "DWI", "ADC") if name in contrasts]
    *sources, target = order[:2] if len(lists) == 1 else ("T1", "FLAIR")
    trained_and_evaluated(
        "pmm_synth",
        folder,
        data=data,
        ids={"datalist": [[site, str(path)] for site, path in lists.items()], "modalities": order, **ids},
        training=training,
        evaluation={
            "sources": sources, "target": target, "source_counts": [1, -1], "slices": ["middle", 4], **evaluation,
        },
        run=run,
    )  # fmt: skip
    with (folder / run / "matrix.csv").open(newline="") as file:
        rows = [one for one in csv.DictReader(file) if one["region"] == "brain"]
    return {site: mean(float(one["psnr"]) for one in rows if one["dataset"] == site) for site in lists}


def row(found: dict[str, list[float]], seed: int, name: str, values: Mapping[str, float]) -> None:
    for site, value in values.items():
        found[site].append(value)
    print(f"{seed:>4}  {name:15}" + "".join(f"{values[site]:>9.2f}" for site in found), flush=True)


if __name__ == "__main__":
    main()
