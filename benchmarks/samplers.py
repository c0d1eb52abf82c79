"""Does method bayes learn from its trials? A search for a known optimum, with each of the methods at equal trials.

    python benchmarks/samplers.py [--trials 40] [--seeds 20] [--samplers tpe]

The objective is 0 at a learning rate of 2e-4, a layer decay of 0.7, the second of four encoders and batches of 32, and
grows with the distance from it. Nothing is trained: this measures whether a file of settings reaches Optuna's sampler
as it is meant. The table goes to stdout, every best value to benchmarks/results/samplers.json.
"""
import argparse, json, math, warnings
from pathlib import Path
warnings.filterwarnings("ignore")
import numpy as np
from zoofast.sweep.search import open_study, search
from zoofast.sweep.settings import read_settings

PARAMETERS = dict(
    learning_rate=dict(distribution="log_uniform_values", min=1e-6, max=1e-1),
    layer_decay=dict(min=0., max=1.),
    model_name=dict(values=["a", "b", "c", "d"]),
    batch_size=dict(values=[16, 32, 64]))

def loss(values, trial=None):
    rate = math.log10(values["learning_rate"]/2e-4)**2
    decay = 4*(values["layer_decay"]-0.7)**2
    model = 0.3*(values["model_name"]!="b")
    batch = 0.1*abs(math.log2(values["batch_size"]/32))
    return rate+decay+model+batch

def best(method, sampler, n, seed):
    s = read_settings(dict(method=method, metric=dict(name="valid_loss", goal="minimize"), parameters=PARAMETERS))
    study = open_study(s)
    search(study, s, loss, n, seed, sampler)
    assert len(study.trials)==n
    return study.best_value

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--trials", type=int, default=40)
    p.add_argument("--seeds", type=int, default=20)
    p.add_argument("--samplers", nargs="*", default=["tpe"], help="of method bayes: tpe, gp")
    args = p.parse_args()
    ways = {"random": ("random", "tpe"), **{f"bayes ({o})": ("bayes", o) for o in args.samplers}}
    found = {k: [best(*way, args.trials, seed) for seed in range(args.seeds)] for k,way in ways.items()}
    title = f"best of {args.trials} trials, mean of {args.seeds} seeds"
    print(f"| method | {title} | median | worst | better than random |")
    print("| --- | --- | --- | --- | --- |")
    for k,v in found.items():
        won = "" if k=="random" else f"{sum(a<b for a,b in zip(v, found['random']))} of {len(v)}"
        print(f"| {k} | {np.mean(v):.3f} | {np.median(v):.3f} | {np.max(v):.3f} | {won} |")
    out = Path(__file__).parent/"results"/"samplers.json"
    values = {k: [float(f"{o:.6g}") for o in v] for k,v in found.items()}
    out.write_text(json.dumps(dict(trials=args.trials, best=values), indent=1)+"\n")

if __name__=="__main__": main()
