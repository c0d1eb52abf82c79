"""Do conformal sets hold as many galaxies as they promise, and what does a temperature do? Galaxy Zoo 1, several
splits.

    python benchmarks/conformal.py [--seeds 0 1 2 3 4] [--size 160] [--epochs 10] [--coverage 0.8 0.9 0.95]

A linear probe on the frozen encoder is trained, calibrated on the validation galaxies (20 %) and used on those kept out
(40 %); the split follows the seed. The 1,833 galaxies are expected in ../shared/data/gz1, or in $ZOOFAST_DATA/gz1. The
table is also written to benchmarks/results/conformal.json.
"""
import argparse, json, os, platform, warnings
from pathlib import Path
warnings.filterwarnings("ignore")
import numpy as np, pandas as pd, torch
from datetime import date
from zoofast.all import GalaxyDataLoaders, galaxy_learner, predict_catalog, read_catalog, split_catalog
from zoofast.tasks.calibration import calibration_error
from zoofast.training.runs import package_versions

HERE = Path(__file__).resolve().parent

def run(df, seed, args):
    """One row for each coverage: part of the galaxies kept out whose class is in their set, size of the sets,
    calibration errors"""
    df = split_catalog(df, "class_name", valid=0.2, test=0.4, seed=seed)
    dls = GalaxyDataLoaders.from_catalog(df, "class_name", size=args.size, progress=False)
    learn = galaxy_learner(dls, args.encoder, training_mode="head_only", seed=seed)
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(args.epochs)
    test = df[df.split=="test"].reset_index(drop=True)
    before = predict_catalog(learn, test, progress=False)
    cal = learn.calibrate()
    def error(preds):
        right = preds.class_name_pred==test.class_name
        return calibration_error(preds[dls.task.columns[1:]].max(axis=1), right)
    rows = []
    for coverage in args.coverage:
        preds = predict_catalog(learn, test, coverage=coverage, progress=False)
        sets = preds.class_name_set.str.split("|")
        inside = [t in s for t,s in zip(test.class_name, sets)]
        sizes = preds.class_name_set.map(lambda s: len(s.split("|")) if s else 0)
        rows.append(dict(
            seed=seed,
            asked=coverage,
            n_valid=cal["n"],
            n_test=len(test),
            coverage=round(float(np.mean(inside)), 4),
            mean_size=round(float(sizes.mean()), 2),
            temperature=round(cal["temperature"], 3),
            error_before=round(error(before), 4),
            error_after=round(error(preds), 4),
            same_classes=bool((before.class_name_pred==preds.class_name_pred).all())))
    return rows

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    p.add_argument("--coverage", type=float, nargs="+", default=[0.8, 0.9, 0.95])
    p.add_argument("--epochs", type=int, default=10)
    p.add_argument("--size", type=int, default=160)
    p.add_argument("--encoder", default="tf_efficientnet_lite0")
    p.add_argument("--out", type=Path, default=HERE/"results"/"conformal.json")
    args = p.parse_args()
    df = read_catalog(Path(os.environ.get("ZOOFAST_DATA", HERE.parents[1]/"shared"/"data"))/"gz1"/"labels.csv")
    rows = []
    for seed in args.seeds:
        rows += run(df, seed, args)
        print(pd.DataFrame(rows[-len(args.coverage):]).to_string(index=False, header=seed==args.seeds[0]), flush=True)
    table = pd.DataFrame(rows)
    mean = table.groupby("asked")[["coverage", "mean_size", "error_before", "error_after"]].mean().round(4)
    print(mean.to_string())
    cpu = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu
    result = dict(date=date.today().isoformat(), versions=package_versions(), device=device,
                  settings={**vars(args), "out": args.out.name}, rows=rows, mean=mean.reset_index().to_dict("records"))
    args.out.write_text(json.dumps(result, indent=1))

if __name__=="__main__": main()
