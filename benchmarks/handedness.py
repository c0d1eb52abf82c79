"""Does flip=False keep handedness, and do flips destroy it? Clockwise and anticlockwise spirals of Galaxy Zoo 1, told
apart with and without mirrored views.

    python benchmarks/handedness.py [--seeds 0 1 2] [--epochs 20] [--size 128] [--encoder tf_efficientnet_lite0] ...

A mirror image of a clockwise spiral is an anticlockwise one. So a network that trains on mirrored views cannot tell
them apart (accuracy near 0.5), and one that trains on views that are turned by any angle, zoomed and shifted but never
mirrored can. ImageNet's training mirrors, so pretrained features know little of handedness: the whole encoder is
finetuned, with one rate and with moving means in its batch normalisations. The 595 spirals (70 % train, 10 % valid,
20 % test; the split follows the seed) are expected in ../shared/data/gz1, or in $ZOOFAST_DATA/gz1. Every other option
of the form --name value is a parameter of `galaxy_learner`. The table is also written to
benchmarks/results/handedness.json.
"""
import argparse, ast, json, os, platform, time, warnings
from pathlib import Path
warnings.filterwarnings("ignore")
import numpy as np, pandas as pd, torch
from datetime import date
from zoofast.all import (GalaxyDataLoaders, ImageReader, galaxy_learner, predict_catalog, read_catalog,
                         score_predictions, split_catalog)
from zoofast.training.runs import package_versions

HERE = Path(__file__).resolve().parent

def run(df, seed, flip, args, params):
    """Train with or without mirrored views; scores of the test galaxies, and of their mirror images, whose handedness
    is the other one"""
    df = split_catalog(df, "handedness", valid=0.1, test=0.2, seed=seed)
    reader = ImageReader(args.size, crop=args.crop, margin=1.2)
    use = df[df.split!="test"].reset_index(drop=True)
    dls = GalaxyDataLoaders.from_catalog(use, "handedness", reader=reader, augment=args.augment, flip=flip,
                                         batch_size=args.batch_size, progress=False)
    learn = galaxy_learner(dls, args.encoder, seed=seed, **params)
    start = time.perf_counter()
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(args.epochs)
    seconds = time.perf_counter()-start
    test = df[df.split=="test"].reset_index(drop=True)
    scores = score_predictions(predict_catalog(learn, test, tta=4, progress=False), test, dls.task)
    mirror = torch.stack([dls.reader(f) for f in test.file_loc]).flip(3)
    p = learn.to_model().samples(mirror, tta=4).mean(0)
    other = [dls.task.classes[1-i] for i in p.argmax(1)]
    return dict(
        flip=flip,
        seed=seed,
        n=scores["n"],
        accuracy=round(scores["accuracy"], 3),
        roc_auc=round(scores["roc_auc"], 3),
        accuracy_of_mirror_images=round(float((np.array(other)==test.handedness).mean()), 3),
        train_loss=round(learn.history[-1]["train_loss"], 3),
        seconds=round(seconds))

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--flips", nargs="+", default=["no", "yes"], choices=["no", "yes"])
    p.add_argument("--epochs", type=int, default=20)
    p.add_argument("--size", type=int, default=96)
    p.add_argument("--crop", type=float, default=0.3, help="part of each image's side that is read")
    p.add_argument("--augment", default="galaxy")
    p.add_argument("--batch-size", type=int, default=32)
    p.add_argument("--encoder", default="tf_efficientnet_lite0")
    p.add_argument("--out", type=Path, default=HERE/"results"/"handedness.json")
    args,rest = p.parse_known_args()
    def value(s):
        try: return ast.literal_eval(s)
        except (ValueError, SyntaxError): return s
    params = dict(learning_rate=1e-3, layer_decay=1., bn_stats="update", head_dropout_prob=0.)
    params |= {k.removeprefix("--").replace("-", "_"): value(v) for k,v in zip(rest[::2], rest[1::2])}
    data = Path(os.environ.get("ZOOFAST_DATA", HERE.parents[1]/"shared"/"data"))
    df = read_catalog(data/"gz1"/"labels.csv")
    df = df[df.class_name.isin(["spiral_cw", "spiral_acw"])].reset_index(drop=True)
    df["handedness"] = df.class_name.str.removeprefix("spiral_")
    rows = []
    for seed in args.seeds:
        for flip in args.flips:
            rows.append(run(df, seed, flip=="yes", args, params))
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows).sort_values(["flip", "seed"])
    mean = table.groupby("flip")[["accuracy", "roc_auc", "accuracy_of_mirror_images"]].mean().round(3)
    print(f"{args.encoder}, {args.size} px, crop {args.crop}, augment {args.augment!r}, batch {args.batch_size}, "
          f"{args.epochs} epochs, {params}")
    print(table.to_string(index=False), mean.to_string(), sep="\n\n")
    cpu = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu
    about = dict(date=date.today().isoformat(), versions=package_versions(), device=device,
                 settings={**vars(args), "out": args.out.name, **params})
    means = {f"flip={k}": v for k,v in mean.to_dict("index").items()}
    args.out.write_text(json.dumps(dict(**about, rows=table.to_dict("records"), mean=means), indent=1))

if __name__=="__main__": main()
