"""A search on real galaxies by two processes, one of which is killed on the way and started again: is each trial done
once?

    python benchmarks/sweep_rings.py [--data ../shared/data/rings/labels.csv] [--trials 12] [--epochs 2] [--size 96]
        [--training-mode full]

Two `zoofast sweep` commands share one folder. Once both are at work and two trials are finished, one is ended with
SIGKILL, in the middle of a trial, and the same command is given again. At the end the database is asked which trials
were finished, by whom, and how often. The table goes to stdout, trials and verdict to
benchmarks/results/sweep_rings.json; `--out FOLDER` keeps the search with its page.
"""
import argparse, json, os, signal, subprocess, sys, tempfile, time, warnings
from pathlib import Path
warnings.filterwarnings("ignore")
import pandas as pd, yaml

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = dict(name="rings", method="bayes", metric=dict(name="valid_loss", goal="minimize"), parameters=dict(
    model_name=dict(values=["tf_efficientnet_lite0", "tf_efficientnet_lite1"]),
    batch_size=dict(values=[16, 32]),
    layer_decay=dict(min=0.4, max=1.),
    head_dropout_prob=dict(min=0., max=0.7),
    learning_rate=dict(distribution="log_uniform_values", min=1e-5, max=1e-2)))

def trials_in(folder):
    "Optuna's trials, by state"
    import optuna
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if not (folder/"study.db").exists(): return []
    try: return optuna.load_study(study_name="sweep", storage=f"sqlite:///{folder/'study.db'}").trials
    except (KeyError, optuna.exceptions.StorageInternalError): return []       # the tables are being made

def sweep(file, folder, args):
    "One of the processes"
    words = [sys.executable, "-m", "zoofast.cli", "sweep", file, "--catalog", args.data, "--label", "ring",
             "--size", args.size, "--epochs", args.epochs, "--save-dir", folder, "--trials", args.trials]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*map(str, words)], cwd=ROOT, stdout=subprocess.DEVNULL, env=env)

def killed_on_the_way(start, folder):
    "Two processes, of which one is killed in the middle of a trial and started again; their exit codes"
    ps = [start(), start()]
    def states(): return [t.state.name for t in trials_in(folder)]
    while not ((now := states()).count("COMPLETE")>=2 and now.count("RUNNING")==2):
        if any(o.poll() is not None for o in ps): sys.exit("a process ended too early")
        time.sleep(0.5)
    ps[0].send_signal(signal.SIGKILL)
    ps[0].wait()
    ps[0] = start()
    return [o.wait() for o in ps]

def was_killed(t): return t.state.name=="FAIL" and "reason" not in t.user_attrs and not t.user_attrs.get("surplus")

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, default=ROOT.parent/"shared"/"data"/"rings"/"labels.csv")
    p.add_argument("--trials", type=int, default=12)
    p.add_argument("--epochs", type=int, default=2)
    p.add_argument("--size", type=int, default=96)
    p.add_argument("--training-mode", default="full")
    p.add_argument("--out", type=Path)
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        folder = args.out or Path(tmp)/"run"
        parameters = {**SETTINGS["parameters"], "training_mode": dict(value=args.training_mode)}
        file = Path(tmp)/"settings.yaml"
        file.write_text(yaml.safe_dump({**SETTINGS, "parameters": parameters}, sort_keys=False))
        began = time.time()
        codes = killed_on_the_way(lambda: sweep(file, folder, args), folder)
        took,trials = time.time()-began,trials_in(folder)
        finished = [t.user_attrs for t in trials if t.state.name=="COMPLETE"]
        done = [o["place"] for o in finished]
        again = [o["place"] for o in finished if o.get("tries", 1)>1]
        killed = [t.user_attrs["place"] for t in trials if was_killed(t)]
        table = pd.read_csv(folder/"trials.csv")
        best = table.loc[table.valid_loss.idxmin()]
        columns = ["trial", "state", "valid_loss", "accuracy", "seconds", *SETTINGS["parameters"]]
        out = dict(
            trials=args.trials, finished=len(done), places=sorted(done), twice=len(done)-len(set(done)), killed=killed,
            done_again=again, exit_codes=codes, seconds=round(took),
            training_mode=args.training_mode, epochs=args.epochs, size=args.size,
            table=json.loads(table[columns].round(5).to_json(orient="records")))
        (Path(__file__).parent/"results"/"sweep_rings.json").write_text(json.dumps(out, indent=1)+"\n")
        print("| trials asked for | finished | finished twice | killed in the middle, and done again | "
              "best validation loss | accuracy there | seconds |\n| --- | --- | --- | --- | --- | --- | --- |")
        print(f"| {args.trials} | {len(set(done))} | {out['twice']} | {', '.join(str(o+1) for o in killed)} | "
              f"{best.valid_loss:.3f} (trial {best.trial}) | {best.accuracy:.3f} | {took:.0f} |")
        wrong = sorted(done)!=list(range(args.trials)) or len(killed)!=1 or killed!=again or any(codes)
        if wrong: sys.exit(f"not as it should be: {out}")

if __name__=="__main__": main()
