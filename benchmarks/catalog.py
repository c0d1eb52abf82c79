"""Seconds to read, check (without opening images) and split a catalogue of a million galaxies, and the memory it takes.

    python benchmarks/catalog.py [--rows 1000000] [--rounds 3] [--kinds csv-repeated csv-distinct ...]

The tables are made in a temporary folder, with 19-digit identifiers, relative paths, a label and two numbers.
"repeated" has 3,000 files that many rows share, "distinct" a file of its own for each row (hard links, in 100 folders),
"bands" two of these a galaxy, in two columns.
Each kind runs in a process of its own; of the rounds the fastest is kept, by wall time, with its CPU time beside it: on
a machine that others use too, the second says what the work takes. Results go to benchmarks/results/catalog.jsonl, a
line each.
"""
import argparse, datetime, json, os, resource, subprocess, sys, tempfile, time
from pathlib import Path

RESULTS = Path(__file__).resolve().parent/"results"/"catalog.jsonl"
KINDS = ["csv-repeated", "csv-distinct", "parquet-distinct", "fits-distinct", "parquet-bands"]
STAGES = ["read", "check", "split"]

def make(folder, n):
    "The tables, and the files that they point to"
    import numpy as np, pandas as pd
    from astropy.table import Table
    from PIL import Image
    rng = np.random.default_rng(0)
    for i in range(3000):
        (folder/"few").mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (8,8), dtype=np.uint8)).save(folder/"few"/f"{i}.png")
    for i in range(n):
        if i%10_000==0: (folder/"many"/str(i//10_000)).mkdir(parents=True)
        os.link(folder/"few"/f"{i//10_000%3000}.png", folder/"many"/str(i//10_000)/f"{i}.png")
    rows = np.arange(n)
    shape = np.array(["spiral", "elliptical", "merger", "ring"])[rng.choice(4, n, p=[.5,.3,.15,.05])]
    df = pd.DataFrame({
        "id_str": (5877229527674394000+rng.permutation(n)).astype(str),
        "file_loc": [f"many/{i//10_000}/{i}.png" for i in rows],
        "shape": shape,
        "mag": rng.normal(17, 1, n).round(4),
        "ra": rng.uniform(0, 360, n)})
    df.to_csv(folder/"csv-distinct.csv", index=False)
    df.to_parquet(folder/"parquet-distinct.parquet")
    fits_type = lambda c: c.dtype if c.dtype.kind=="f" else "S"
    Table({c: df[c].to_numpy(dtype=fits_type(df[c])) for c in df}).write(folder/"fits-distinct.fits")
    bands = df.drop(columns="file_loc").assign(g=df.file_loc, r=df.file_loc.to_numpy()[::-1])
    bands.to_parquet(folder/"parquet-bands.parquet")
    repeated = df.assign(file_loc=[f"few/{i%3000}.png" for i in rows], shape=shape[rows%3000])
    repeated.to_csv(folder/"csv-repeated.csv", index=False)

def measure(path):
    "Seconds of each stage for the table at `path`, as a dict"
    from zoofast.data.check import check_catalog
    from zoofast.catalog.read import read_catalog
    from zoofast.catalog.split import split_catalog
    res = {}
    def timed(stage, f):
        start = time.perf_counter(),time.process_time()
        out = f()
        res[stage],res[stage+"_cpu"] = time.perf_counter()-start[0],time.process_time()-start[1]
        return out
    df = timed("read", lambda: read_catalog(path, file_col=["g", "r"] if "bands" in path else "file_loc"))
    check = timed("check", lambda: check_catalog(df, "shape", open_images=False))
    if len(check.bad): raise SystemExit(f"{len(check.bad)} rows are bad: {check.bad.reason[0]}")
    timed("split", lambda: split_catalog(check.ok, "shape", test=0.1))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss//1024
    return res | {"rows": len(df), "suspect": len(check.suspect), "peak_MB": peak, "load": os.getloadavg()[0]}

def fastest(path, rounds):
    "The round that took the least time, each in a process of its own"
    command = [sys.executable, __file__, "--measure", path]
    said = [subprocess.run(command, check=True, capture_output=True, text=True).stdout for _ in range(rounds)]
    return min(map(json.loads, said), key=lambda r: sum(r[s] for s in STAGES))

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rows", type=int, default=1_000_000)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    p.add_argument("--measure", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.measure: print(json.dumps(measure(args.measure))); return
    import pandas as pd, pyarrow as pa
    RESULTS.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), args.rows)
        print(f"{args.rows:,} rows, {os.cpu_count()} cores, pandas {pd.__version__}, pyarrow {pa.__version__}; "
              "seconds, and of CPU in brackets")
        about = {"cores": os.cpu_count(), "pandas": pd.__version__, "pyarrow": pa.__version__}
        for kind in args.kinds:
            best = fastest(str(next(Path(folder).glob(kind+".*"))), args.rounds)
            stages = "  ".join(f"{s} {best[s]:5.2f} ({best[s+'_cpu']:5.2f})" for s in STAGES)
            print(f"{kind:18}{stages}  read and check {best['read']+best['check']:5.2f}  peak {best['peak_MB']} MB  "
                  f"load {best['load']:.1f}", flush=True)
            row = {"kind": kind, **best, **about, "date": str(datetime.date.today())}
            with RESULTS.open("a") as f: f.write(json.dumps(row) + "\n")

if __name__=="__main__": main()
