"""Random kills: is anything lost, doubled or mixed?

    python benchmarks/kills.py [--kills 300] [--seconds 3600] [--seed 0] [--only bundle cache predict finetune sweep]

Each round starts one kind of work in a process of its own, which SIGKILL ends just before a random one of its renames,
links, fsyncs, removals and openings of files. The same work is then given again, as a user would give the command
again (`--resume` for a training), and its result is compared with that of an unbroken one: a bundle must be the old or
the new one as a whole and may leave nothing beside it; pixels that were kept must be those of the images; predictions
must have each galaxy once with its own numbers; a training and a search must end with the history of an unbroken one.
Printed are kills and faults of each kind; results also go to benchmarks/results/kills.json.

Processes are forked from one that has everything loaded, so that a kill costs a fraction of a second.
"""
import argparse, json, os, platform, random, shutil, signal, sys, tempfile, time, traceback, warnings
from pathlib import Path
warnings.filterwarnings("ignore")
import numpy as np, pandas as pd, torch
from zoofast.all import GalaxyDataLoaders, galaxy_learner, list_runs, load_bundle, predict_catalog
from zoofast.simulate import simulate_survey

EVENTS = "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"

def watch(where, at=None):
    "Count this process's steps in the folder `where`; SIGKILL just before step `at`"
    n = [0]
    def step():
        n[0] += 1
        if n[0]==at: os.kill(os.getpid(), signal.SIGKILL)
    def hook(event, args):
        if event in EVENTS and str(args[0]).startswith(where): step()
        elif event=="open" and str(args[0]).startswith(where) and isinstance(args[2], int) and args[2] & 3: step()
    sys.addaudithook(hook)
    fsync = os.fsync
    def synced(fd):
        step()
        return fsync(fd)
    os.fsync = synced
    return n

def child(f, where, at=None):
    "Call `f` in a forked process; how many steps it made, or `None` where it was killed. Raises where it failed"
    read,write = os.pipe()
    if not (pid := os.fork()):
        code = 1
        try:
            sys.stderr = open(os.devnull, "w") if at else sys.stderr
            n = watch(where, at)
            f()
            os.write(write, str(n[0]).encode())
            code = 0
        except BaseException: traceback.print_exc()
        finally: os._exit(code)
    os.close(write)
    with os.fdopen(read) as r: said = r.read()
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status): return None
    if status: raise RuntimeError("the work failed without being killed")
    return int(said)

def folder_names(at): return sorted(o.name for o in at.iterdir() if not o.name.endswith((".lock", "_lock")))

class Work:
    "One kind of work: `do` in a folder, given again after a kill, and `result`, which is the same for an unbroken one"
    def __init__(self, home): self.home = home
    def prepare(self, at): at.mkdir(parents=True)
    def after_kill(self, at): pass

def loaders(home, cache="memory"):
    return GalaxyDataLoaders.from_catalog(home/"survey"/"catalog.csv", "morphology", size=32, batch_size=8, seed=1,
                                          valid=.25, cache=cache, progress=False)

def learner(home, seed=42, **kw):
    return galaxy_learner(loaders(home), "test_convnext", pretrained=False, precision="fp32", seed=seed, **kw)

def quietly(learn, f):
    with learn.no_bar(), learn.no_logging(): f()

class Bundle(Work):
    "A bundle written over a bundle"
    def __init__(self, home):
        self.home,self.models = home,{k: learner(home, seed=s) for k,s in (("old", 1), ("new", 2))}
        for k,o in self.models.items(): o.history[:] = [{"epoch": 0, "which": k}]
    def prepare(self, at):
        at.mkdir(parents=True)
        self.models["old"].save_bundle(at/"b")
        (at/"b"/"notes.txt").write_text("mine")
    def which(self, at):
        got = load_bundle(at/"b", "cpu").net.state_dict()
        found = [k for k,o in self.models.items() if all(torch.equal(v, got[n]) for n,v in o.net.state_dict().items())]
        assert list(pd.read_csv(at/"b"/"history.csv").which)==found, "mixed"
        assert (at/"b"/"notes.txt").read_text()=="mine", "lost"
        return found[0]
    def after_kill(self, at): self.which(at)
    def do(self, at): self.models["new"].save_bundle(at/"b")
    def result(self, at): return self.which(at),folder_names(at),folder_names(at/"b")

class Cache(Work):
    "Images decoded into the cache"
    def do(self, at): loaders(self.home, at/"cache")
    def result(self, at):
        store = loaders(self.home, at/"cache").store
        left = [o.name for o in (at/"cache").iterdir() if o.name.endswith(".part")]
        return store[range(len(store.files))].numpy().tobytes(),left

class Predict(Work):
    "A table of predictions, in shards that are joined"
    def __init__(self, home): self.home,self.model = home,learner(home).to_model()
    def do(self, at):
        predict_catalog(self.model, self.home/"survey"/"catalog.csv", at/"p.csv", shard_size=8, engine="torch",
                        progress=False)
    def result(self, at): return (at/"p.csv").read_text(),folder_names(at)

class Finetune(Work):
    "A training, resumed, with its bundle"
    def do(self, at):
        torch.set_num_threads(1)
        learn = learner(self.home, save_dir=at/"run", resume=True)
        def train():
            with learn.run_folder.held():
                learn.fine_tune(2)
                learn.save_bundle(at/"run"/"bundle")
        quietly(learn, train)
    def result(self, at):
        h = pd.read_csv(at/"run"/"history.csv").drop(columns="seconds")
        weights = load_bundle(at/"run", "cpu").net.state_dict()
        left = [str(o.relative_to(at)) for o in at.rglob("*") if ".part" in o.name or o.name.endswith(".old")]
        return h.to_csv(index=False),np.concatenate([v.numpy().ravel() for v in weights.values()]).tobytes(),left

class Sweep(Work):
    "A search of three trials, taken up again"
    def do(self, at):
        from zoofast.sweep.trials import SweepData, run_sweep
        torch.set_num_threads(1)
        rates = dict(learning_rate=dict(values=[1e-3, 1e-4, 1e-5]))
        s = dict(method="grid", metric=dict(name="valid_loss", goal="minimize"), parameters=rates)
        fixed = dict(encoder="test_convnext", random_weights=True, precision="fp32", epochs=1, size=32, batch_size=8)
        rows = loaders(self.home).catalog
        run_sweep(s, SweepData(rows, "morphology", progress=False), at/"sweep", 3, fixed=fixed, alive=1)
    def result(self, at):
        "The histories of finished trials, each setting once"
        runs = list_runs(at/"sweep"/"trials")
        done = [Path(o) for o in runs[runs.state=="finished"].path]
        return sorted(pd.read_csv(o/"history.csv").drop(columns="seconds").to_csv(index=False) for o in done)

KINDS = dict(bundle=Bundle, cache=Cache, predict=Predict, finetune=Finetune, sweep=Sweep)

def one_round(work, at, steps, rng):
    """Kill the work once or a few times, give it again until it ends; returns how many kills, and what is wrong, if
    anything"""
    work.prepare(at)
    kills = 0
    try:
        for _ in range(rng.choice([1, 1, 2, 3])):
            if child(lambda: work.do(at), str(at), rng.randint(1, steps)) is not None: break     # it came to its end
            kills += 1
            work.after_kill(at)
        child(lambda: work.do(at), str(at))
        return kills,"" if work.result(at)==work.want else "the result is another one than without a kill"
    except Exception as e: return kills,f"{type(e).__name__}: {e}"

def main():
    p = argparse.ArgumentParser()
    p.add_argument("--kills", type=int, default=300)
    p.add_argument("--seconds", type=float, default=3600)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--only", nargs="*", choices=list(KINDS), default=list(KINDS))
    args = p.parse_args()
    home,rng,end = Path(tempfile.mkdtemp()),random.Random(args.seed),time.time()+args.seconds
    os.environ["ZOOFAST_CACHE"] = str(home/"cache")
    torch.set_num_threads(1)
    simulate_survey(home/"survey", n=40, size=32, fits=False, progress=False)
    works,found = {},{}
    for k in args.only:
        works[k] = work = KINDS[k](home)
        work.prepare(at := home/f"{k}-whole")
        work.steps = child(lambda: work.do(at), str(at))
        work.want,found[k] = work.result(at),dict(rounds=0, kills=0, faults=[])
        print(f"{k}: {work.steps} steps", flush=True)
    n = 0
    while sum(o["kills"] for o in found.values())<args.kills and time.time()<end:
        k = args.only[n%len(args.only)]
        at,n,of = home/f"round-{n}",n+1,found[k]
        kills,wrong = one_round(works[k], at, works[k].steps, rng)
        of["rounds"],of["kills"] = of["rounds"]+1,of["kills"]+kills
        if wrong:
            of["faults"].append(wrong)
            print(f"{k}, round {n}: {wrong} ({at})", flush=True)
        else: shutil.rmtree(at, ignore_errors=True)
    about = dict(seed=args.seed, python=platform.python_version(), system=platform.platform(), found=found)
    for k,o in found.items(): print(f"{k:10} {o['rounds']:4} rounds {o['kills']:4} kills {len(o['faults']):4} faults")
    out = Path(__file__).parent/"results"/"kills.json"
    out.write_text(json.dumps(about, indent=1)+"\n")
    sys.exit(any(o["faults"] for o in found.values()))

if __name__=="__main__": main()
