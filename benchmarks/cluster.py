"""A catalogue on a Dask cluster: is the table one process's, what does a kill cost, how fast is it?

    python benchmarks/cluster.py [--rows 200000] [--shard-size 5000] [--rounds 4] [--turns 6]
        [--only kills jobs speed overhead] [--encoder test_vit] [--size 32]

An encoder with random weights, tiny unless another is named, predicts a catalogue whose rows point to 200 pictures
again and again. `kills`: a scheduler and two workers, each a process of its own, make the table while SIGKILL ends a
worker three times, the driver once and the scheduler once; what comes out is compared, row by row and bit for bit, with
the table of one process. `jobs`: the same comparison with two jobs of `--slurm 2`, by submitit's local executor, one of
which is killed. `speed`: two workers of `--dask 2` and two processes that are given the same command. Both have begun,
and then work by turns of ten seconds in which the others are stopped, since machines drift by more than the two differ;
in every second round the processes begin first.
`overhead`: shards of 200 rows by one worker and by one process; what a shard costs more. Results also go to
benchmarks/results/cluster.json.
"""
import argparse, json, os, platform, shutil, signal, subprocess, sys, tempfile, time, warnings
from pathlib import Path
warnings.filterwarnings("ignore")
import numpy as np, pandas as pd, torch

ENV = {**os.environ, "OMP_NUM_THREADS": "1", "DASK_LOGGING__DISTRIBUTED": "critical"}

def prepare(tmp, rows, encoder="test_vit", size=32):
    from zoofast.all import GalaxyModel, ImageReader, create_encoder, read_catalog
    from zoofast.bundles.bundle import write_bundle
    from zoofast.encoders.encoder import GalaxyNet
    from zoofast.simulate import simulate_survey
    from zoofast.tasks.classes import Classification
    df = read_catalog(simulate_survey(tmp/"survey", n=200, size=size, fits=False, progress=False))
    task = Classification("morphology").fit(df)
    torch.manual_seed(0)
    net = GalaxyNet(create_encoder(encoder, size, pretrained=False), task.n_out)
    write_bundle(tmp/"bundle", GalaxyModel(net, task, ImageReader(size)))
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

def jobs(tmp, args):
    "The table of two jobs of submitit's local executor, one of which is killed, beside that of one process"
    import psutil
    out,n = tmp/"jobs",-(-args.rows//args.shard_size)
    if not (tmp/"one").exists(): ended(predict(tmp, tmp/"one", args.shard_size))
    driver = predict(tmp, out, args.shard_size, "--slurm", 2, "--slurm-opts", "cluster=local,time=30")
    first = int(driver.stderr.readline().split()[1])                 # "jobs 123 124; ..."
    while len(parts(out))<n//3: time.sleep(.005)
    psutil.Process(first).children()[0].kill()
    at = len(parts(out))
    said = driver.communicate()[1]
    if driver.returncode: raise RuntimeError(said)
    pd.testing.assert_frame_equal(pd.read_parquet(out), pd.read_parquet(tmp/"one"), check_exact=True)
    m = json.loads((out/"_manifest.json").read_text())
    return dict(rows=args.rows, shards=n, equal=True, complete=m["complete"], killed_at_shard=at,
                said=said.strip().split("\n")[-1])

def rate(out, size):
    "Rows a second while all are at it, from the fifth shard to the last but one"
    times = sorted(o.stat().st_mtime for o in parts(out))
    return (len(times)-6)*size/(times[-2]-times[4])

def tree(processes):
    "Processes and all below them"
    import psutil
    return [o for p in processes for o in (psutil.Process(p.pid), *psutil.Process(p.pid).children(recursive=True))]

def first_shards(run, n=4):
    "Wait until a run has made its first shards; seconds until the first"
    (out,processes),began,first = run,time.time(),None
    while (there := len(parts(out)))<n:
        if there and first is None: first = time.time()-began
        if any(o.poll() is not None for o in processes): raise RuntimeError("ended too soon; give more --rows")
        time.sleep(.05)
    return first

def turn(run, seconds):
    "Let a run that is stopped work for some seconds: shards it has made, seconds it had, seconds of CPU it took"
    out,processes = run
    there = tree(processes)
    def cpu(): return sum(sum(o.cpu_times()[:2]) for o in there)
    n,used,t = len(parts(out)),cpu(),time.time()
    for o in there: o.resume()
    time.sleep(seconds)
    for o in there: o.suspend()
    if any(o.poll() is not None for o in processes): raise RuntimeError("at its end; give more --rows")
    return len(parts(out))-n,time.time()-t,cpu()-used

def speed_round(tmp, args, names, seconds=10):
    "Rates of two workers and of two processes, which begin in the order of `names` and take turns"
    def begin(who):
        dask,out = who=="2 workers",tmp/who
        words = ["--dask", 2] if dask else []
        run = out,[predict(tmp, out, args.shard_size, *words) for _ in range(1 if dask else 2)]
        first[who] = first_shards(run)
        for o in tree(run[1]): o.suspend()
        return run
    first = {}
    runs = {k: begin(k) for k in names}
    made = {k: [] for k in runs}
    for i in range(args.turns):
        for who in names[::(-1)**i]: made[who].append(turn(runs[who], seconds))
    for out,processes in runs.values():
        for o in tree(processes): o.resume()
        for o in processes: o.terminate(), o.communicate()
        shutil.rmtree(out, ignore_errors=True)
    total = {k: np.sum(v, 0) for k,v in made.items()}
    for k,(n,t,cpu) in total.items():
        print(f"{k}: {n*args.shard_size/t:.0f} galaxies a second, {cpu/t:.2f} cores; "
              f"first shard after {first[k]:.1f} s", flush=True)
    return {k: dict(rate=n*args.shard_size/t, cores=cpu/t, first_shard=first[k]) for k,(n,t,cpu) in total.items()}

def speed(tmp, args):
    "Ratio of the rates; memory may be faster for who begins later, so each begins first in half of the rounds"
    names = ["2 workers", "2 processes"]
    rounds = [speed_round(tmp, args, names[::(-1)**i]) for i in range(args.rounds)]
    ratios = [o[names[0]]["rate"]/o[names[1]]["rate"] for o in rounds]
    return dict(turns=args.turns, rounds=rounds, ratios=ratios, ratio=float(np.exp(np.log(ratios).mean())))

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
            found[who].append(1000*size/rate(out, size))
            print(f"one {who}: {found[who][-1]:.1f} ms a shard of {size}", flush=True)
    return dict(ms=found, overhead_ms=float(np.median(found["worker"])-np.median(found["process"])))

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rows", type=int, default=200_000)
    p.add_argument("--shard-size", type=int, default=5000)
    p.add_argument("--rounds", type=int, default=4)
    p.add_argument("--turns", type=int, default=6)
    p.add_argument("--encoder", default="test_vit")
    p.add_argument("--size", type=int, default=32)
    p.add_argument("--only", nargs="+", default=["kills", "jobs", "speed", "overhead"])
    args = p.parse_args()
    if args.rows<10*args.shard_size: p.error("--rows: ten shards are the least that rates can be told from")
    name = "" if (args.encoder, args.size)==("test_vit", 32) else f" {args.encoder} {args.size} px"
    results = dict(machine=f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as d:
        tmp = Path(d)
        prepare(tmp, args.rows, args.encoder, args.size)
        for o in args.only:
            results[o+name] = dict(rows=args.rows, shard_size=args.shard_size) | globals()[o](tmp, args)
            print(o, json.dumps(results[o+name]), flush=True)
    path = Path(__file__).parent/"results"/"cluster.json"
    old = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(old|results, indent=1)+"\n")

if __name__=="__main__": main()
