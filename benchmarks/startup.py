"""Seconds, seconds of CPU and memory until zoofast is ready, beside fastai: imports, `zoofast --help`, the first batch;
and which commands load fastai.

    python benchmarks/startup.py [--rounds 5]

Each row is a process of its own, with its files in the system's page cache; they take turns. Results also go to
benchmarks/results/startup.json.
"""
import argparse, os, subprocess, sys, tempfile, time
from pathlib import Path
from statistics import median
from rounds import HERE, about, keep, table

OUR_BATCH = '''from zoofast.all import *
GalaxyDataLoaders.from_catalog(CATALOG, 'morphology', size=64, device='cpu', progress=False).train.one_batch()'''
FASTAIS_BATCH = '''import pandas as pd
from fastai.vision.all import *
df = pd.read_csv(CATALOG)
dls = ImageDataLoaders.from_df(df, path=Path(CATALOG).parent, fn_col='file_loc', label_col='morphology',
                               item_tfms=Resize(64), batch_tfms=aug_transforms(), bs=32, num_workers=0,
                               device=torch.device('cpu'))
dls.train.one_batch()'''
IMPORTS = ["from zoofast.predict.table import predict_catalog", "from fastai.vision.all import *",
           "from zoofast.all import *"]
ROWS = {
    "python": "pass",
    "import zoofast": "import zoofast",
    "import torch": "import torch",
    "zoofast --help": ["-m", "zoofast.cli", "--help"],
    "zoofast finetune --help": ["-m", "zoofast.cli", "finetune", "--help"],
    **{o: o for o in IMPORTS},
    "first batch, zoofast": OUR_BATCH,
    "first batch, fastai": FASTAIS_BATCH}
COMMANDS = [
    ["--help"],
    ["encoders", "convnext_nano"],
    ["cache"],
    ["check", "CATALOG", "--label", "morphology"],
    ["represent", "test_vit", "CATALOG", "--random-weights", "--size", "160", "--out", "OUT"],
    ["similar", "OUT", "sim-000000"]]

def run(args, env):
    "Seconds, seconds of CPU, and peak memory in MB of a process"
    start = time.perf_counter()
    command = [sys.executable, "-W", "ignore", *args]
    p = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    err = p.stderr.read()
    _,status,used = os.wait4(p.pid, 0)
    if status: raise SystemExit(f"{args}: {err.decode()[-500:]}")
    took = time.perf_counter()-start
    return took,used.ru_utime+used.ru_stime,used.ru_maxrss*(1 if sys.platform=="darwin" else 1024)/1e6

def loads_fastai(args, env):
    "Does a command load fastai? `None` where it fails"
    code = f"""import sys
sys.argv = ['zoofast', *{args!r}]
from zoofast.cli import main
try: main()
except SystemExit as e: code = e.code
print('FASTAI' if 'fastai' in sys.modules else 'NOT', code, file=sys.stderr)"""
    res = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=env, capture_output=True, text=True)
    said = res.stderr.strip().splitlines()[-1].split()
    return None if said[-1] not in ("0", "None") else said[0]=="FASTAI"

def simulate(folder):
    "Forty galaxies, by another process: this one stays small, since the system counts its memory as its children's"
    code = f"""from zoofast.simulate import simulate_survey
simulate_survey({str(folder)!r}, n=40, size=64, fits=False, progress=False)"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rounds", type=int, default=5)
    args = p.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as tmp:
        simulate(f"{tmp}/survey")
        catalog = str(Path(tmp)/"survey"/"catalog.csv")
        env = {**os.environ, "ZOOFAST_CACHE": f"{tmp}/cache", "PYTHONPATH": str(HERE.parent)}
        took = {k: [] for k in ROWS}
        for i in range(args.rounds+1):                    # the first round fills the page cache
            for k,v in ROWS.items():
                one = run(v if isinstance(v, list) else ["-c", v.replace("CATALOG", repr(catalog))], env)
                if i: took[k].append(one)
        found = {k: dict(zip(("seconds", "cpu_seconds", "mb"), map(median, zip(*v)))) for k,v in took.items()}
        def words(command): return [o.replace("CATALOG", catalog).replace("OUT", f"{tmp}/f.parquet") for o in command]
        commands = {" ".join(c): loads_fastai(words(c), env) for c in COMMANDS}
    base = found["from fastai.vision.all import *"]
    table(["", "seconds", "seconds of CPU", "MB", "/ fastai.vision.all", "CPU, / fastai.vision.all"],
          [(k, *v.values(), v["seconds"]/base["seconds"], v["cpu_seconds"]/base["cpu_seconds"])
           for k,v in found.items()])
    said = {True: "yes", False: "no", None: "failed"}
    table(["command", "loads fastai"], [(k, said[v]) for k,v in commands.items()])
    keep("startup", {**about("fastai", rounds=args.rounds), "load_before": load, "load_after": os.getloadavg()[0],
                     "rows": found, "commands_that_load_fastai": commands})

if __name__=="__main__": main()
