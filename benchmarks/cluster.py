"""A catalogue on a Dask cluster: is the table one process's, what does a kill cost, how fast is it?

    python benchmarks/cluster.py [--rows 200000] [--shard-size 5000] [--rounds 3] [--only kills speed overhead]

A tiny encoder predicts a catalogue whose rows point to 200 pictures again and again. `kills`: a scheduler and two
workers, each a process of its own, make the table while SIGKILL ends a worker three times, the driver once and the
scheduler once; what comes out is compared, row by row and bit for bit, with the table of one process. `speed`: two
workers of `--dask 2` and two processes that are given the same command, one after the other, several times; rates are
those between the first shard that is written and the last, so that neither pays for its start, which is printed beside
them. `overhead`: shards of 200 rows by one worker and by one process; what a shard costs more. Results also go to
benchmarks/results/cluster.json.
"""
import argparse, json, os, platform, shutil, signal, subprocess, sys, tempfile, time, warnings
from pathlib import Path
warnings.filterwarnings("ignore")
import numpy as np, pandas as pd, torch

ENV = {**os.environ, "OMP_NUM_THREADS": "1", "DASK_LOGGING__DISTRIBUTED": "critical"}

def prepare(tmp, rows):
    from zoofast.all import GalaxyModel, ImageReader, create_encoder, read_catalog
    from zoofast.bundles.bundle import write_bundle
    from zoofast.encoders.encoder import GalaxyNet
    from zoofast.simulate import simulate_survey
    from zoofast.tasks.classes import Classification
    df = read_catalog(simulate_survey(tmp/"survey", n=200, size=32, fits=False, progress=False))
    task = Classification("morphology").fit(df)
    torch.manual_seed(0)
    net = GalaxyNet(create_encoder("test_vit", 32, pretrained=False), task.n_out)
    write_bundle(tmp/"bundle", GalaxyModel(net, task, ImageReader(32)))
    ids = [f"{587722981736579107+i:021d}" for i in range(rows)]
    pd.DataFrame({"id_str": ids, "file_loc": np.resize(df.file_loc, rows)}).to_parquet(tmp/"big.parquet")

def start(*words, **kw): return subprocess.Popen([sys.executable, *map(str, words)], env=ENV, text=True, **kw)

def predict(tmp, out, size, *words):
    return start("-m", "zoofast.cli", "predict", tmp/"bundle", tmp/"big.parquet", "--out", out, "--shard-size", size,
                 "--engine", "torch", *words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

def parts(out): return list(out.glob("part-*.parquet"))

def ended(*processes):
    for o in processes:
        err = o.communicate()[1]
        if o.returncode: raise RuntimeError(err)

def kill(o):
    o.send_signal(signal.SIGKILL)
    o.wait()

class Cluster:
    "A scheduler and two workers"
    def __init__(self, tmp):
        self.file = tmp/"scheduler.json"
        self.file.unlink(missing_ok=True)
        quiet = dict(stderr=subprocess.DEVNULL)
        self.scheduler = start("-m", "dask", "scheduler", "--port", 0, "--host", "127.0.0.1", "--no-dashboard",
                               "--scheduler-file", self.file, **quiet)
        while not self.file.exists(): time.sleep(.1)
        self.nannies = [start("-m", "dask", "worker", "--scheduler-file", self.file, "--nthreads", 1,
                              "--memory-limit", 0, "--no-dashboard", **quiet) for _ in range(2)]
    def kill_worker(self, but):
        "SIGKILL for a worker's process, which its nanny starts again"
        from distributed import Client
        with Client(scheduler_file=str(self.file), set_as_default=False) as c:
            while not (pids := [o for o in c.run(os.getpid, on_error="ignore").values() if o not in but]):
                time.sleep(.1)
        os.kill(pids[0], signal.SIGKILL)
        return pids[0]
    def end(self):
        for o in (self.scheduler, *self.nannies): kill(o)

def kills(tmp, args):
    "The table of a cluster in which all are killed, beside that of one process"
    out,n = tmp/"killed",-(-args.rows//args.shard_size)
    ended(predict(tmp, tmp/"one", args.shard_size))
    cluster,killed = Cluster(tmp),[]
    def until(k, process):
        while len(parts(out))<k:
            if process.poll() is not None: raise RuntimeError(process.communicate()[1])
            time.sleep(.005)
    driver = predict(tmp, out, args.shard_size, "--dask", cluster.file)
    for i in (1, 2, 3):
        until(i*n//8, driver)
        killed.append(cluster.kill_worker(killed))
    until(n//2, driver)
    kill(driver)
    driver = predict(tmp, out, args.shard_size, "--dask", cluster.file)
    until(3*n//4, driver)
    kill(cluster.scheduler)
    said = driver.communicate()[1]
    cluster.end()
    there = {o: o.stat().st_mtime_ns for o in parts(out)}
    ended(predict(tmp, out, args.shard_size, "--dask", 2))
    one,got = pd.read_parquet(tmp/"one"),pd.read_parquet(out)
    pd.testing.assert_frame_equal(got, one, check_exact=True)
    m = json.loads((out/"_manifest.json").read_text())
    kept = sum(o.stat().st_mtime_ns==t for o,t in there.items())
    return dict(rows=len(got), shards=n, equal=True, complete=m["complete"], said=said.strip().split("\n")[-1],
                there_before_the_end=len(there), of_these_kept=kept)

def rate(out, size, rows):
    "Rows a second between the first shard and the last, and seconds between the start and the first shard"
    times = sorted(o.stat().st_mtime for o in parts(out))
    return (len(times)-1)*size/(times[-1]-times[0]),times[0]

def speed(tmp, args):
    found = {"2 workers": [], "2 processes": []}
    starts = {k: [] for k in found}
    for i in range(args.rounds):
        for who in found:
            out,began = tmp/f"{who}{i}",time.time()
            if who=="2 workers": ended(predict(tmp, out, args.shard_size, "--dask", 2))
            else: ended(*[predict(tmp, out, args.shard_size) for _ in range(2)])
            r,first = rate(out, args.shard_size, args.rows)
            found[who].append(r)
            starts[who].append(first-began)
            shutil.rmtree(out)
            print(f"{who}: {r:.0f} galaxies a second; first shard after {first-began:.1f} s", flush=True)
    mid = {k: float(np.median(v)) for k,v in found.items()}
    return dict(rates=found, first_shard=starts, ratio=mid["2 workers"]/mid["2 processes"])

def overhead(tmp, args, size=200):
    "What a shard costs more with one worker than in a process, in milliseconds"
    head = tmp/"head"
    head.mkdir()
    shutil.copytree(tmp/"bundle", head/"bundle")
    pd.read_parquet(tmp/"big.parquet").head(20_000).to_parquet(head/"big.parquet")
    found = {"worker": [], "process": []}
    for i in range(args.rounds):
        for who in found:
            out = head/f"{who}{i}"
            ended(predict(head, out, size, *(["--dask", 1] if who=="worker" else [])))
            found[who].append(1000*size/rate(out, size, 20_000)[0])
            print(f"one {who}: {found[who][-1]:.1f} ms a shard of {size}", flush=True)
    return dict(ms=found, overhead_ms=float(np.median(found["worker"])-np.median(found["process"])))

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rows", type=int, default=200_000)
    p.add_argument("--shard-size", type=int, default=5000)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--only", nargs="+", default=["kills", "speed", "overhead"])
    args = p.parse_args()
    results = dict(machine=f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores", rows=args.rows,
                   shard_size=args.shard_size)
    with tempfile.TemporaryDirectory() as d:
        tmp = Path(d)
        prepare(tmp, args.rows)
        for o in args.only:
            results[o] = globals()[o](tmp, args)
            print(o, json.dumps(results[o]), flush=True)
    path = Path(__file__).parent/"results"/"cluster.json"
    old = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(old|results, indent=1)+"\n")

if __name__=="__main__": main()
