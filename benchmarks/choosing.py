"""What each parameter of finetuning does to a simulated survey: one changed at a time, three seeds of head and
training.

    python benchmarks/choosing.py [--hours 1]      runs what is not in the results yet
    python benchmarks/choosing.py --table          prints the means

800 simulated galaxies of 64 pixels: 200 to train on, 100 to validate, 500 for the test. Each run appends one line to
benchmarks/results/choosing.jsonl, which nbs/tutorials/choosing_parameters.ipynb draws.
"""
import argparse, json, tempfile, time, warnings
from pathlib import Path
warnings.filterwarnings("ignore")
import fastai, numpy as np, pandas as pd, timm, torch
from zoofast.all import (GalaxyDataLoaders, galaxy_learner, predict_catalog, score_predictions, simulate_survey,
                         split_catalog)

RESULTS = Path(__file__).resolve().parent/"results"/"choosing.jsonl"
SEEDS = 3
# Parameter: (its default, the other values). `fit` goes to `fine_tune`; all others to `galaxy_learner`
PARAMETERS = {
    "learning_rate": (1e-4, [1e-6, 1e-5, 1e-3, 1e-2]),
    "training_mode": ("full", ["head_only"]),
    "n_blocks": (None, [1, 3]),
    "layer_decay": (0.75, [0, 0.5, 1]),
    "weight_decay": (0.05, [0, 1]),
    "head_dropout_prob": (0.5, [0, 0.8]),
    "fit": ("one_cycle", ["cosine", "constant"]),
}

def jobs():
    "(parameter, value, seed); the default first, under the name of none"
    for seed in range(SEEDS):
        yield "default",None,seed
        for name,(_,values) in PARAMETERS.items():
            for v in values: yield name,v,seed

def survey(folder):
    "Catalogue with its split"
    df = simulate_survey(folder, n=800, size=64, seed=11, fits=False, progress=False)
    return split_catalog(df, "morphology", valid=0.125, test=0.625, seed=0)

def run(df, name, value, seed):
    test = df[df.split=="test"].reset_index(drop=True)
    dls = GalaxyDataLoaders.from_catalog(df[df.split!="test"], "morphology", size=64, progress=False)
    params = {} if name in ("default", "fit") else {name: value}
    learn = galaxy_learner(dls, "tf_efficientnet_lite0", seed=seed, **params)
    start = time.process_time()
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(5, **({"fit": value} if name=="fit" else {}))
    cpu = time.process_time()-start
    preds = predict_catalog(learn, test, progress=False)
    s = score_predictions(preds, test, dls.task)
    p = preds[dls.task.columns[1:]].to_numpy(float)[np.arange(len(test)), np.asarray(dls.task.encode(test))]
    return dict(accuracy=s["accuracy"], log_loss=float(-np.log(np.maximum(p, 1e-12)).mean()), cpu_seconds=round(cpu, 1),
                history=[{k: round(float(h[k]), 4) for k in ("train_loss", "valid_loss")} for h in learn.history])

def done(): return [json.loads(l) for l in RESULTS.read_text().splitlines()] if RESULTS.exists() else []

def work(hours):
    end,had = time.time()+3600*hours,{(r["parameter"], r["value"], r["seed"]) for r in done()}
    with tempfile.TemporaryDirectory() as tmp:
        df = survey(tmp)
        for name,value,seed in jobs():
            if (name, value, seed) in had: continue
            if time.time()>end: break
            row = dict(parameter=name, value=value, seed=seed) | run(df, name, value, seed)
            row |= dict(date=f"{pd.Timestamp.now():%Y-%m-%d}", torch=torch.__version__, timm=timm.__version__,
                        fastai=fastai.__version__)
            with open(RESULTS, "a") as f: f.write(json.dumps(row)+"\n")
            print(f"{name:18} {str(value):10} {seed}  accuracy {row['accuracy']:.3f}  loss {row['log_loss']:.3f}  "
                  f"{row['cpu_seconds']:.0f} s", flush=True)

def table():
    df = pd.DataFrame(done())
    g = df.assign(value=df.value.map(str)).groupby(["parameter", "value"], sort=False)
    means = {c: (c, "mean") for c in ("accuracy", "log_loss", "cpu_seconds")}
    print(g.agg(runs=("seed", "size"), **means).round(3).to_string())

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--hours", type=float, default=24, help="no run starts after this")
    p.add_argument("--table", action="store_true")
    args = p.parse_args()
    torch.set_num_threads(1)
    if args.table: table()
    else: work(args.hours)

if __name__=="__main__": main()
