"""A linear probe to the end: zoofast, zoobot 2.9.0's head_only and fastai's frozen fit, seconds and accuracy.

    python benchmarks/head_only.py [--n 600] [--epochs 20] [--encoder tf_efficientnet_lite0] [--data gz1] [--size 224]
        [--batch-size 32] [--rounds 5] [--peers zoobot fastai]

The same galaxies, split, encoder (its pretrained weights where a package has them), epochs, batch size and size; from
files to a trained head, zoofast without decoded images from before. Each has its own defaults but for the learning rate
of the head, `--head-lr`. The accuracy is the best epoch's on the validation galaxies. Results also go to
benchmarks/results/head_only.json.
"""
import argparse, os, shutil, tempfile, warnings
from pathlib import Path
warnings.filterwarnings("ignore")
import numpy as np, torch
from zoofast.all import GalaxyDataLoaders, create_encoder, galaxy_learner, split_catalog
from rounds import DATA, Peer, about, galaxies, keep, table, take_turns, timed, zoobot_python

def zoofast_row(df, args, tmp):
    def fit():
        shutil.rmtree(f"{tmp}/cache", ignore_errors=True)
        dls = GalaxyDataLoaders.from_catalog(df, "label", size=args.size, batch_size=args.batch_size, device="cpu",
                                             progress=False)
        learn = galaxy_learner(dls, args.encoder, pretrained=args.pretrained, training_mode="head_only",
                               monitor="accuracy")
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(args.epochs, args.head_lr)
        fit.accuracy = learn.best_epoch["accuracy"]
    return lambda: {**timed(fit, 1), "accuracy": fit.accuracy}

def fastai_row(df, args, weights):
    from fastai.vision.all import ImageDataLoaders, Resize, accuracy, aug_transforms, vision_learner
    def load(body):
        "The same first weights, but for what fastai's body lacks"
        there = body.state_dict()
        body.load_state_dict({k: v for k,v in torch.load(weights, weights_only=True).items() if k in there})
    def fit():
        dls = ImageDataLoaders.from_df(df.assign(v=df.split=="valid"), fn_col="file_loc", label_col="label",
                                       valid_col="v", path="/", item_tfms=Resize(args.size),
                                       batch_tfms=aug_transforms(), bs=args.batch_size, num_workers=0,
                                       device=torch.device("cpu"))
        learn = vision_learner(dls, args.encoder, pretrained=False, metrics=accuracy)
        if weights: load(learn.model[0].model)
        learn.freeze()
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(args.epochs, args.head_lr)
        fit.accuracy = max(float(o[2]) for o in learn.recorder.values)
    return lambda: {**timed(fit, 1), "accuracy": fit.accuracy}

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--n", type=int, default=600)
    p.add_argument("--epochs", type=int, default=20)
    p.add_argument("--encoder", default="tf_efficientnet_lite0")
    p.add_argument("--data", default="gz1")
    p.add_argument("--data-dir", type=Path, default=DATA)
    p.add_argument("--size", type=int, default=224)
    p.add_argument("--batch-size", type=int, default=32)
    p.add_argument("--head-lr", type=float, default=5e-3)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--peers", nargs="*", default=["zoobot", "fastai"])
    args = p.parse_args()
    args.pretrained = args.encoder=="tf_efficientnet_lite0"
    asked = ("n", "epochs", "encoder", "data", "size", "batch_size", "head_lr", "rounds")
    info = about("fastai", **{k: getattr(args, k) for k in asked})
    print(f"{info['cpu']}, {info['instructions']}, {info['threads']} threads, load before {info['load_before']}\n")
    with tempfile.TemporaryDirectory() as tmp:
        os.environ["ZOOFAST_CACHE"],weights = f"{tmp}/cache",f"{tmp}/encoder.pt"
        df = split_catalog(galaxies(args.data, args.data_dir, args.n, tmp), "label", valid=0.2, seed=0)
        torch.save(create_encoder(args.encoder, args.size, pretrained=args.pretrained).body.state_dict(), weights)
        rows = {"zoofast": zoofast_row(df, args, tmp)}
        if "fastai" in args.peers: rows["fastai"] = fastai_row(df, args, weights)
        job = dict(encoder=args.encoder, weights=weights, files=df.file_loc.tolist(), labels=df.label.tolist(),
                   split=df.split.tolist(), size=args.size, batch_size=args.batch_size, workers=0,
                   threads=torch.get_num_threads(), epochs=args.epochs, head_lr=args.head_lr)
        if "zoobot" in args.peers:
            with Peer(zoobot_python(), Path(__file__).with_name("zoobots.py"), job) as peer:
                rows["zoobot"] = peer.rows["head_only"]
                took = take_turns(rows, args.rounds, warm=0)
        else: took = take_turns(rows, args.rounds, warm=0)
    if bad := [v for v in took.values() if isinstance(v[-1], str)]: raise SystemExit(bad[0][-1])
    kinds = ("seconds", "cpu", "accuracy")
    base = {k: {w: float(np.median([o[w] for o in v])) for w in kinds} for k,v in took.items()}
    ours = base["zoofast"]
    table(["program", "seconds", "seconds of CPU", "accuracy", "/ zoofast", "CPU, / zoofast"],
          [(k, *v.values(), v["seconds"]/ours["seconds"], v["cpu"]/ours["cpu"]) for k,v in base.items()])
    about_it = f"{args.encoder}, {args.n} galaxies, {args.epochs} epochs, {args.size} px"
    keep("head_only", {about_it: {**info, "load_after": os.getloadavg()[0], "programs": base}})

if __name__=="__main__": main()
