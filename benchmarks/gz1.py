"""Accuracy on 1,794 SDSS galaxies of Galaxy Zoo 1: edge-on, elliptical, spiral, merger.

    python benchmarks/gz1.py [--seeds 0 1 2] [--epochs 5] [--size 128] [--encoder tf_efficientnet_lite0] ...

Clockwise and anticlockwise spirals are joined and `dont_know` is left out. The split (70 % train, 10 % valid, 20 %
test), the head's first weights and the training all follow the seed. The galaxies are expected in ../shared/data/gz1,
or in $ZOOFAST_DATA/gz1. Every other option of the form --name value is a parameter of `galaxy_learner`.
"""
import argparse, ast, warnings
warnings.filterwarnings("ignore")
import pandas as pd
from zoofast.all import (GalaxyDataLoaders, ImageReader, galaxy_learner, predict_catalog, read_catalog,
                         score_predictions, split_catalog)
from rounds import DATA

def galaxies():
    "The catalogue, in four classes"
    df = read_catalog(DATA/"gz1"/"labels.csv")
    df = df[df.class_name!="dont_know"].reset_index(drop=True)
    return df.assign(morphology=df.class_name.where(~df.class_name.str.startswith("spiral"), "spiral"))

def learner(df, seed, encoder, size=128, batch_size=32, margin=None, **params):
    "A learner, and the galaxies to test it with"
    df = split_catalog(df, "morphology", valid=0.1, test=0.2, seed=seed)
    use = df[df.split!="test"].reset_index(drop=True)
    reader = ImageReader(size, margin=margin) if margin else None
    dls = GalaxyDataLoaders.from_catalog(use, "morphology", reader=reader, size=size, batch_size=batch_size)
    return galaxy_learner(dls, encoder, seed=seed, **params),df[df.split=="test"].reset_index(drop=True)

def run(df, seed, args, params):
    learn,test = learner(df, seed, args.encoder, args.size, args.batch_size, args.margin, **params)
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(args.epochs, head_lr=args.head_lr, fit=args.fit)
    return score_predictions(predict_catalog(learn, test, progress=False), test, learn.task)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--epochs", type=int, default=5)
    p.add_argument("--size", type=int, default=128)
    p.add_argument("--batch-size", type=int, default=32)
    p.add_argument("--encoder", default="tf_efficientnet_lite0")
    p.add_argument("--margin", type=float, help="of the reader; the data loaders' own unless given")
    p.add_argument("--fit", help="schedule of the second stage; fine_tune's own unless given")
    p.add_argument("--head-lr", type=float, help="of the first stage; fine_tune's own unless given")
    args,rest = p.parse_known_args()
    def value(s):
        try: return ast.literal_eval(s)
        except (ValueError, SyntaxError): return s
    params = {k.removeprefix("--").replace("-", "_"): value(v) for k,v in zip(rest[::2], rest[1::2])}
    df = galaxies()
    scores = pd.DataFrame([{"seed": s, **run(df, s, args, params)} for s in args.seeds]).set_index("seed")
    given = {k: v for k,v in (("margin", args.margin), ("head_lr", args.head_lr), ("fit", args.fit)) if v} | params
    print(f"{args.encoder}, {args.size} px, batch {args.batch_size}, {args.epochs} epochs, "
          f"{given or 'default parameters'}")
    print(scores.round(3).to_string())
    print("mean", scores.drop(columns="n").mean().round(3).to_dict())

if __name__=="__main__": main()
