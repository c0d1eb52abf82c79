"""What the benchmarks share: programs that take turns, their medians and ratios, and results with the machine and the
versions they are of."""
import importlib.metadata, json, os, platform, resource, subprocess, sys, time
from datetime import date
from pathlib import Path

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("ZOOFAST_DATA") or HERE.parents[1]/"shared"/"data")

def cores(): return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

def cpu_seconds():
    "Seconds of all cores that this process and its ended children have used"
    return sum(u.ru_utime+u.ru_stime for u in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))

def timed(f, n=None, wait=None):
    "Call `f`: images it handled (`n`, or what it gives back), seconds, and seconds of CPU"
    start = time.perf_counter(),cpu_seconds()
    got = f()
    if wait: wait()
    return dict(n=n or got, seconds=time.perf_counter()-start[0], cpu=cpu_seconds()-start[1])

def take_turns(rows, rounds, warm=1):
    """Call each of `rows` (name -> function that gives what `timed` does) in turn, `rounds` times after `warm` that do
    not count"""
    took = {k: [] for k in rows}
    for i in range(rounds+warm):
        for k,f in rows.items():
            one = f()
            if i>=warm: took[k].append(one)
        print(f"round {i+1} of {rounds+warm}, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
    return took

def rates(took):
    "Name -> median images a second, and a second of CPU; medians, which one disturbed round does not move"
    from statistics import median
    def rate(runs, of):
        "`None` where the clock has not moved"
        return median(o["n"]/o[of] for o in runs) if all(o[of]>0 for o in runs) else None
    return {k: dict(per_second=median(o["n"]/o["seconds"] for o in v), per_cpu_second=rate(v, "cpu"))
            for k,v in took.items()}

def ratios(found, base):
    "Name -> how many times the rate of `base`, by time and by CPU time"
    def over(a, b): return a/b if a and b else None
    return {k: {what: over(v[what], found[base][what]) for what in v} for k,v in found.items()}

def number(v): return "" if v is None else v if isinstance(v, str) else f"{v:.3g}" if abs(v)<1000 else f"{v:,.0f}"

def table(head, rows):
    "Print a table of Markdown"
    print("| "+" | ".join(head)+" |\n|"+" --- |"*len(head))
    for r in rows: print("| "+" | ".join(number(o) for o in r)+" |", flush=True)
    print(flush=True)

def show(title, found, *bases):
    "Print the rates of programs, and their ratios to each of `bases`; the second of a pair is by CPU time"
    print(f"{title}\n")
    over = [ratios(found, b) for b in bases]
    ratio = lambda k, what: [o[k][what] for o in over]
    table(["program", "a second", *(f"/ {b}" for b in bases), *(f"/ {b}, CPU time" for b in bases)],
          [(k, v["per_second"], *ratio(k, "per_second"), *ratio(k, "per_cpu_second")) for k,v in found.items()])

def about(*packages, **more):
    "Date, machine, load and versions"
    import torch
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    name = next((l.split(":")[1].strip() for l in info.splitlines() if "model name" in l), platform.processor())
    versions = {o: importlib.metadata.version(o) for o in ("torch", "timm", "zoofast", *packages)}
    return dict(
        date=str(date.today()),
        cpu=name,
        instructions=torch.backends.cpu.get_cpu_capability(),
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        cores=cores(),
        threads=torch.get_num_threads(),
        load_before=round(os.getloadavg()[0], 1),
        system=platform.system(),
        versions={"python": platform.python_version(), **versions},
        **more)

def keep(name, result):
    "Write benchmarks/results/`name`.json; what an earlier run found under other keys stays"
    path = HERE/"results"/f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    old = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**old, **result}, indent=1, default=str)+"\n")

class Peer:
    """A script in another environment: told what its job is, it answers each line that it is sent, the name of one of
    its rows, with a line of json"""
    def __init__(self, python, script, job, **env):
        env = {k: v for k,v in os.environ.items() if k!="PYTHONPATH"} | {"PYTHONWARNINGS": "ignore"} | env
        self.p = subprocess.Popen([str(python), str(script), "--peer"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                  text=True, env=env)
        self.p.stdin.write(json.dumps(job)+"\n"); self.p.stdin.flush()
        said = self.p.stdout.readline()
        if not said: raise SystemExit(f"{script} does not start in {python}")
        self.about = json.loads(said)
        self.rows = {k: (lambda k=k: self.ask(k)) for k in self.about["rows"]}
    def ask(self, name):
        self.p.stdin.write(name+"\n"); self.p.stdin.flush()
        return json.loads(self.p.stdout.readline())
    def close(self):
        self.p.stdin.close()
        self.p.wait()
    def __enter__(self): return self
    def __exit__(self, *_): self.close()

class Worker:
    """A process of this Python that runs `code`: it says a line when it is ready, then answers each line that it is
    told with one of json"""
    def __init__(self, code, *args, cwd=None, **env):
        self.p = subprocess.Popen([sys.executable, "-c", code, *map(str, args)], cwd=cwd, env={**os.environ, **env},
                                  text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.answer()
    def answer(self):
        line = self.p.stdout.readline()
        if not line: raise SystemExit(f"a process ended with {self.p.wait()}")
        return line
    def run(self, what):
        print(what, file=self.p.stdin, flush=True)
        return json.loads(self.answer())
    def close(self):
        self.p.stdin.close()
        self.p.wait()

def answer(make):
    "The other end of `Peer`: `make` gives the rows and a description for a job"
    if "--peer" not in sys.argv: return False
    out,sys.stdout = sys.stdout,sys.stderr
    rows,said = make(json.loads(sys.stdin.readline()))
    print(json.dumps(dict(rows=list(rows), **said)), file=out, flush=True)
    for name in iter(sys.stdin.readline, ""):
        try: got = rows[name.strip()]()
        except Exception as e: got = f"{type(e).__name__}: {e}"              # what a peer cannot do is a result too
        print(json.dumps(got), file=out, flush=True)
    return True

def zoobot_python():
    "The Python of an environment with zoobot 2.9.0, made where there is none"
    sys.path.append(str(HERE.parent/"tools"))
    import zoobot_checkpoints
    return zoobot_checkpoints.zoobot_python()

def galaxies(name, data=DATA, n=None, tmp=None, size=256):
    """A catalogue with a column `label`, of numbers: "rings" or "gz1" (real jpgs, where they are), "simulated" or
    "fits" (simulated, one band, float32)"""
    import pandas as pd
    from zoofast.catalog.read import read_catalog
    if name in ("rings", "gz1") and (data/name).is_dir():
        df = read_catalog(data/name/"labels.csv")
        if name=="gz1": df = df[df.class_name!="dont_know"]
        names = df.ring if name=="rings" else df.class_name.where(~df.class_name.str.startswith("spiral"), "spiral")
    else:
        from zoofast.simulate import simulate_survey
        df = simulate_survey(Path(tmp)/name, n=n or 600, size=size, fits=name=="fits", progress=False)
        names = df.morphology
        if name=="fits":
            from astropy.io import fits
            for f in df.fits_loc: fits.writeto(f, fits.getdata(f)[1], overwrite=True)
            df["file_loc"] = df.fits_loc
    df = df.assign(label=pd.Categorical(names).codes.astype(int))
    df = df[["id_str", "file_loc", "label"]].sample(frac=1, random_state=0)
    return (df if n is None else pd.concat([df]*-(-n//len(df))).head(n)).reset_index(drop=True)
