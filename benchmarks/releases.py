"""This code beside that of another commit: what reading, training and predicting cost in each, as ratios.

    python benchmarks/releases.py OTHER_CHECKOUT [--n 128] [--size 128] [--rounds 5] [--rows read_jpg train ...]

OTHER_CHECKOUT is a folder with the other commit's files (`git worktree add ../before COMMIT`). A process of each does
the same work in turn, `--rounds` times after one that warms up, on the same simulated galaxies (jpg and FITS) with the
same encoder, which has random weights. Printed are medians of this code's time over the other's, of the clock and of
the processor (all threads); below 1 this code is the faster one. Results also go to benchmarks/results/releases.json.
"""
import argparse, json, os, platform, statistics, subprocess, tempfile
from datetime import date
from pathlib import Path
from rounds import Worker

ROWS = ["read_jpg", "read_fits", "read_catalog", "train", "train_features", "predict"]

WORK = r'''
import json, sys, time, warnings
warnings.filterwarnings("ignore")
from pathlib import Path
folder,size = Path(sys.argv[1]),int(sys.argv[2])
from zoofast.all import *
import torch
torch.set_num_threads(int(sys.argv[3]))
jpg,fits = (read_catalog(folder/"survey"/"catalog.csv", file_col=c) for c in ("file_loc", "fits_loc"))
reader = ImageReader(size)
shown = dict(cache="memory", progress=False)
def learner(**kwargs):
    dls = GalaxyDataLoaders.from_catalog(jpg, "morphology", size=size, batch_size=16, seed=1, **shown)
    return galaxy_learner(dls, "tf_efficientnet_lite0", pretrained=False, precision="fp32", **kwargs)
kept = {}
def made(name, f):
    if name not in kept: kept[name] = f()
    return kept[name]
def fit(name, **kwargs):
    learn = made(name, lambda: learner(**kwargs))
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
def read(df): [reader(f) for f in df.file_loc]
def predict(): predict_catalog(made("train", learner), jpg, engine="torch", progress=False)
work = dict(read_jpg=lambda: read(jpg), read_fits=lambda: read(fits),
            read_catalog=lambda: read_catalog(folder/"many.csv"), train=lambda: fit("train"),
            train_features=lambda: fit("head", training_mode="head_only"), predict=predict)
print("ready", flush=True)
for line in sys.stdin:
    wall,cpu = time.perf_counter(),time.process_time()
    work[line.strip()]()
    print(json.dumps([time.perf_counter()-wall, time.process_time()-cpu]), flush=True)
'''

def simulate(folder, n):
    "Galaxies as jpg and as FITS of 256 pixels, and a catalogue of many rows"
    import pandas as pd
    from zoofast.simulate import simulate_survey
    simulate_survey(folder/"survey", n=n, size=256, seed=1, progress=False)
    rows = pd.DataFrame({"id_str": [f"{10**18+i}" for i in range(300_000)]})
    rows["file_loc"] = [f"images/{i%1000}/{i}.jpg" for i in range(len(rows))]
    rows.assign(mag=18.5, morphology="ring").to_csv(folder/"many.csv", index=False)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("other", type=lambda o: Path(o).resolve())
    p.add_argument("--n", type=int, default=128)
    p.add_argument("--size", type=int, default=128)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS)
    args = p.parse_args()
    here = Path(__file__).resolve().parent.parent
    def commit(folder):
        said = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=folder, capture_output=True, text=True)
        return said.stdout.strip() or "unknown"
    with tempfile.TemporaryDirectory() as tmp:
        simulate(folder := Path(tmp), args.n)
        def code(checkout):
            env = dict(PYTHONPATH=str(checkout), ZOOFAST_CACHE=str(folder/"cache"))
            return Worker(WORK, folder, args.size, os.cpu_count(), cwd=folder, **env)
        codes = [code(o) for o in (here, args.other)]
        found = {row: [] for row in args.rows}
        for i in range(args.rounds+1):
            for row in args.rows:
                order = codes if i%2 else codes[::-1]
                took = {c: c.run(row) for c in order}
                if i: found[row].append([took[c] for c in codes])
        for c in codes: c.close()
    def middle(times, code, j): return statistics.median(o[code][j] for o in times)
    def ratio(times, j): return round(middle(times, 0, j)/middle(times, 1, j), 3)
    table = {row: dict(wall=ratio(t, 0), cpu=ratio(t, 1)) for row,t in found.items()}
    print(f"{commit(here)} over {commit(args.other)}, medians of {args.rounds} rounds")
    for row,o in table.items(): print(f"{row:>15}  clock {o['wall']:.2f}  processor {o['cpu']:.2f}")
    out = here/"benchmarks"/"results"/"releases.json"
    about = dict(date=str(date.today()), here=commit(here), other=commit(args.other), cpus=os.cpu_count(),
                 machine=platform.processor() or platform.machine(), n=args.n, size=args.size, rounds=args.rounds)
    out.write_text(json.dumps(dict(about=about, ratios=table), indent=1)+"\n")

if __name__=="__main__": main()
