"""Seconds, seconds of CPU and memory until zoofast is ready, beside fastai: imports, `zoofast --help`, the first batch; and which commands load fastai.

    python benchmarks/startup.py [--rounds 5]

Each row is a process of its own, with its files in the system's page cache; they take turns. Results also go to benchmarks/results/startup.json.
"""
import argparse, os, subprocess, sys, tempfile, time
from pathlib import Path
from statistics import median
from rounds import HERE, about, keep, table

ROWS = {"python": "pass", "import zoofast": "import zoofast", "import torch": "import torch", "zoofast --help": ["-m", "zoofast.cli", "--help"], "zoofast finetune --help": ["-m", "zoofast.cli", "finetune", "--help"],
        "from zoofast.predict.table import predict_catalog": "from zoofast.predict.table import predict_catalog", "from fastai.vision.all import *": "from fastai.vision.all import *", "from zoofast.all import *": "from zoofast.all import *",
        "first batch, zoofast": "from zoofast.all import *; GalaxyDataLoaders.from_catalog(CATALOG, 'morphology', size=64, device='cpu', progress=False).train.one_batch()",
        "first batch, fastai": "import pandas as pd; from fastai.vision.all import *; df = pd.read_csv(CATALOG); ImageDataLoaders.from_df(df, path=Path(CATALOG).parent, fn_col='file_loc', label_col='morphology', item_tfms=Resize(64), batch_tfms=aug_transforms(), bs=32, num_workers=0, device=torch.device('cpu')).train.one_batch()"}
COMMANDS = [["--help"], ["encoders", "convnext_nano"], ["cache"], ["check", "CATALOG", "--label", "morphology"], ["represent", "test_vit", "CATALOG", "--random-weights", "--size", "160", "--out", "OUT"], ["similar", "OUT", "sim-000000"]]

def run(args, env):
    "Seconds, seconds of CPU, and peak memory in MB of a process"
    start = time.perf_counter()
    p = subprocess.Popen([sys.executable, "-W", "ignore", *args], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    err = p.stderr.read()
    _,status,used = os.wait4(p.pid, 0)
    if status: raise SystemExit(f"{args}: {err.decode()[-500:]}")
    return time.perf_counter()-start,used.ru_utime+used.ru_stime,used.ru_maxrss*(1 if sys.platform=="darwin" else 1024)/1e6

def loads_fastai(args, env):
    "Does a command load fastai? `None` where it fails"
    code = f"import sys\nsys.argv = ['zoofast', *{args!r}]\nfrom zoofast.cli import main\ntry: main()\nexcept SystemExit as e: code = e.code\nprint('FASTAI' if 'fastai' in sys.modules else 'NOT', code, file=sys.stderr)"
    said = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=env, capture_output=True, text=True).stderr.strip().splitlines()[-1].split()
    return None if said[-1] not in ("0", "None") else said[0]=="FASTAI"

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rounds", type=int, default=5)
    args = p.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as tmp:
        subprocess.run([sys.executable, "-W", "ignore", "-c", f"from zoofast.simulate import simulate_survey; simulate_survey({tmp!r}+'/survey', n=40, size=64, fits=False, progress=False)"], check=True)      # this process stays small: the system counts its memory as its children's
        catalog,env = str(Path(tmp)/"survey"/"catalog.csv"),{**os.environ, "ZOOFAST_CACHE": f"{tmp}/cache", "PYTHONPATH": str(HERE.parent)}
        took = {k: [] for k in ROWS}
        for i in range(args.rounds+1):                    # the first round fills the page cache
            for k,v in ROWS.items():
                one = run(v if isinstance(v, list) else ["-c", v.replace("CATALOG", repr(catalog))], env)
                if i: took[k].append(one)
        found = {k: dict(zip(("seconds", "cpu_seconds", "mb"), map(median, zip(*v)))) for k,v in took.items()}
        commands = {" ".join(c): loads_fastai([o.replace("CATALOG", catalog).replace("OUT", f"{tmp}/f.parquet") for o in c], env) for c in COMMANDS}
    base = found["from fastai.vision.all import *"]
    table(["", "seconds", "seconds of CPU", "MB", "/ fastai.vision.all", "CPU, / fastai.vision.all"], [(k, *v.values(), v["seconds"]/base["seconds"], v["cpu_seconds"]/base["cpu_seconds"]) for k,v in found.items()])
    table(["command", "loads fastai"], [(k, {True: "yes", False: "no", None: "failed"}[v]) for k,v in commands.items()])
    keep("startup", {**about("fastai", rounds=args.rounds), "load_before": load, "load_after": os.getloadavg()[0], "rows": found, "commands_that_load_fastai": commands})

if __name__=="__main__": main()
