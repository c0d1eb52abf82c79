"""Wall time until zoobot's final accuracy is reached: zoofast beside zoobot 2.9.0, several seeds.

    python benchmarks/time_to_accuracy.py [--data gz1 rings] [--epochs 5] [--encoder tf_efficientnet_lite0]
        [--size 128] [--seeds 0 1 2] [--n N]

Both finetune the same encoder (its pretrained weights) with their defaults on the same split, from files; after each
epoch the accuracy on the validation galaxies is noted with the time since the start. zoobot's final accuracy is that of
its best epoch, the one its trainer keeps; its time is that of the whole run, since only then is it known. zoofast's
time is that of the first epoch that is as good. Seeds take turns. Results also go to
benchmarks/results/time_to_accuracy.json.
"""
import argparse, os, shutil, tempfile, time, warnings
from pathlib import Path
warnings.filterwarnings("ignore")
import torch
from fastai.callback.core import Callback
from zoofast.all import GalaxyDataLoaders, create_encoder, galaxy_learner, split_catalog
from rounds import DATA, Peer, about, galaxies, keep, table, zoobot_python

def zoofast(df, seed, args, tmp):
    "Seconds and accuracy after each epoch"
    shutil.rmtree(f"{tmp}/cache", ignore_errors=True)
    start,seen = time.perf_counter(),[]
    class Note(Callback):
        order = 61
        def after_epoch(self): seen.append([time.perf_counter()-start, self.learn.history[-1]["accuracy"]])
    dls = GalaxyDataLoaders.from_catalog(df, "label", size=args.size, batch_size=args.batch_size, device="cpu",
                                         progress=False)
    learn = galaxy_learner(dls, args.encoder, seed=seed, cbs=Note())
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(args.epochs)
    return seen

def zoobot(df, seed, args, weights):
    "The same of zoobot, in its own environment"
    job = dict(encoder=args.encoder, weights=weights, files=df.file_loc.tolist(), labels=df.label.tolist(),
               split=df.split.tolist(), size=args.size, batch_size=args.batch_size, workers=0,
               threads=torch.get_num_threads(), epochs=args.epochs, seeds=[seed])
    with Peer(zoobot_python(), Path(__file__).with_name("zoobots.py"), job) as peer:
        theirs = peer.rows[f"accuracy {seed}"]()
    if isinstance(theirs, str): raise SystemExit(theirs)
    return theirs["epochs"]

def race(df, seed, args, weights, tmp):
    "Both, one after the other: a row of the results"
    ours = zoofast(df, seed, args, tmp)
    theirs = zoobot(df, seed, args, weights)
    goal,whole = max(a for _,a in theirs),theirs[-1][0]
    reached = next((t for t,a in ours if a>=goal), None)
    return dict(
        seed=seed,
        zoobot_accuracy=goal,
        zoobot_seconds=whole,
        zoofast_seconds=reached,
        zoofast_best=max(a for _,a in ours),
        zoofast_whole=ours[-1][0],
        ratio=reached/whole if reached else None,
        zoofast=ours,
        zoobot=theirs)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", nargs="+", default=["gz1", "rings"])
    p.add_argument("--data-dir", type=Path, default=DATA)
    p.add_argument("--n", type=int, help="galaxies; all unless given")
    p.add_argument("--epochs", type=int, default=5)
    p.add_argument("--encoder", default="tf_efficientnet_lite0")
    p.add_argument("--size", type=int, default=128)
    p.add_argument("--batch-size", type=int, default=32)
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = p.parse_args()
    info = about("fastai", **{k: getattr(args, k) for k in ("n", "epochs", "encoder", "size", "batch_size", "seeds")})
    print(f"{info['cpu']}, {info['instructions']}, {info['threads']} threads, load before {info['load_before']}\n")
    with tempfile.TemporaryDirectory() as tmp:
        os.environ["ZOOFAST_CACHE"],weights = f"{tmp}/cache",f"{tmp}/encoder.pt"
        torch.save(create_encoder(args.encoder, args.size).body.state_dict(), weights)
        for kind in args.data:
            rows = []
            for seed in args.seeds:
                df = split_catalog(galaxies(kind, args.data_dir, args.n, tmp), "label", valid=0.2, seed=seed)
                rows.append(race(df, seed, args, weights, tmp))
            print(f"{kind}, {len(df)} galaxies\n")
            columns = ("zoobot_accuracy", "zoobot_seconds", "zoofast_seconds", "ratio", "zoofast_best", "zoofast_whole")
            shown = [{**r, "zoofast_seconds": r["zoofast_seconds"] or "not"} for r in rows]
            table(["seed", "zoobot's accuracy", "its seconds", "zoofast reaches it after", "ratio", "zoofast's best",
                   "its whole run"], [(str(r["seed"]), *(r[c] for c in columns)) for r in shown])
            keep("time_to_accuracy", {kind: {**info, "galaxies": len(df), "runs": rows}})

if __name__=="__main__": main()
