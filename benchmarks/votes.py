"""How well are volunteers' votes predicted, and do the 90 % intervals hold 90 % of the fractions? Simulated surveys.

    python benchmarks/votes.py [--n 800] [--size 128] [--epochs 5] [--seeds 42 43 44] [--min-concentration 0.3]

A survey of --n galaxies with 40 volunteers each is simulated for every seed; 25 % are kept for the test. The table is
also written to benchmarks/results/votes.json.
"""
import argparse, json, os, platform, tempfile, warnings
from pathlib import Path
warnings.filterwarnings("ignore")
import numpy as np, torch
from datetime import date
from zoofast.all import (GalaxyDataLoaders, VoteCounts, galaxy_learner, predict_catalog, score_predictions,
                         simulate_survey, split_catalog)
from zoofast.tasks.votes import MIN_CONCENTRATION
from zoofast.training.runs import package_versions

HERE = Path(__file__).resolve().parent

def coverage(preds, test, schema):
    """Of each counted fraction: is it inside its interval, of how many votes is it, and is its question asked of all
    galaxies?"""
    inside,votes,root = [],[],[]
    for q in schema.questions:
        cols = [f"{q}_{a}" for a in schema.answers[q]]
        n = test[cols].sum(axis=1).to_numpy()
        for c in cols:
            f = test[c].to_numpy()/np.maximum(n, 1)
            inside += list(((preds[f"{c}_fraction_lower"]<=f) & (f<=preds[f"{c}_fraction_upper"]))[n>0])
            votes += list(n[n>0])
            root += [not schema.asked_after[q]]*int((n>0).sum())
    return map(np.array, (inside, votes, root))

def run(seed, args):
    """Train on one survey; scores of its test galaxies, and the part of the counted fractions inside the intervals by
    number of votes"""
    with tempfile.TemporaryDirectory() as d:
        df = simulate_survey(d, n=args.n, size=args.size, seed=seed, fits=False, progress=False)
        df = split_catalog(df, "morphology", valid=0.15, test=0.25, seed=seed)
        task = VoteCounts("decals_dr5_ortho", min_concentration=args.min_concentration)
        dls = GalaxyDataLoaders.from_catalog(df, task=task, size=args.size, progress=False)
        learn = galaxy_learner(dls, args.encoder, seed=seed)
        with learn.no_bar(), learn.no_logging(): learn.fine_tune(args.epochs)
        test = df[df.split=="test"].reset_index(drop=True)
        preds = predict_catalog(learn, test, progress=False)
    score = score_predictions(preds, test, dls.task)
    inside,votes,root = coverage(preds, test, dls.task.schema)
    return dict(
        seed=seed,
        n_test=score["n"],
        log_likelihood=round(score["log_likelihood"], 3),
        fraction_mae=round(score["fraction_mae"], 4),
        fraction_rmse=round(score["fraction_rmse"], 4),
        coverage=round(float(inside.mean()), 4),
        coverage_10_votes=round(float(inside[votes>=10].mean()), 4),
        coverage_asked_of_all=round(float(inside[root].mean()), 4))

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    p.add_argument("--n", type=int, default=800)
    p.add_argument("--size", type=int, default=128)
    p.add_argument("--epochs", type=int, default=5)
    p.add_argument("--min-concentration", type=float, default=MIN_CONCENTRATION)
    p.add_argument("--encoder", default="tf_efficientnet_lite0")
    p.add_argument("--out", type=Path, default=HERE/"results"/"votes.json")
    args = p.parse_args()
    rows = []
    for seed in args.seeds:
        rows.append(run(seed, args))
        print(rows[-1], flush=True)
    cpu = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu
    result = dict(date=date.today().isoformat(), versions=package_versions(), device=device,
                  settings={**vars(args), "out": args.out.name}, rows=rows)
    args.out.write_text(json.dumps(result, indent=1))

if __name__=="__main__": main()
