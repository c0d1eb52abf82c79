"""Few labels: what galaxies without labels add to the same recipe.

    python benchmarks/unlabelled.py [--only gz1 seed0 ...] [--size 64] [--epochs 5]
        runs what is not in the results yet
    python benchmarks/unlabelled.py --table
        prints the table of docs/unlabelled.md

Of the training galaxies (the split of benchmarks/gz1.py: 70 % train, 10 % valid, 20 % test, by the seed), 10 of each
class keep their labels; the others are given as `unlabelled=`, or left out. `labels` is the recipe without them,
`unlabelled` the same with them, and `longer` the recipe without them for as many steps, which tells what the galaxies
add from what the steps do. Scores are of the test galaxies, and `seconds` of training alone. Each run appends a line to
benchmarks/results/unlabelled.jsonl. The data are expected in ../shared/data, or in $ZOOFAST_DATA; `simulated` are 800
galaxies of `zoofast.simulate`.
"""
import argparse, json, math, os, tempfile, time, warnings
from pathlib import Path
warnings.filterwarnings("ignore")
import pandas as pd, timm, torch
from zoofast.all import (GalaxyDataLoaders, galaxy_learner, predict_catalog, read_catalog, score_predictions,
                         simulate_survey, split_catalog)
from zoofast.training.parameters import PARAMETERS
from zoofast.training.unlabelled import MOST, RATIO

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("ZOOFAST_DATA", HERE.parents[1]/"shared"/"data"))
RESULTS = HERE/"results"/"unlabelled.jsonl"
LABEL = dict(gz1="morphology", rings="ring", mirabest="label", nongalaxy="label", simulated="morphology")
RATE = PARAMETERS["learning_rate"].default
WAYS = "labels","unlabelled","longer"
SCORES = "accuracy","balanced_accuracy","roc_auc"

def catalog(name, size):
    if name=="simulated": return simulate_survey(tempfile.mkdtemp(), n=800, size=size, fits=False, progress=False)
    df = pd.read_csv(DATA/name/"labels.csv", dtype={"id_str": str})
    if "id_str" not in df: df = df.assign(id_str=df.index.astype(str))
    df = read_catalog(df, image_dir=DATA/name)
    if name!="gz1": return df.astype({LABEL[name]: str})
    df = df[df.class_name!="dont_know"].reset_index(drop=True)
    return df.assign(morphology=df.class_name.where(~df.class_name.str.startswith("spiral"), "spiral"))

def deal(df, label, seed, n):
    "Rows with labels (and those of the validation), rows without, and rows of the test"
    df = split_catalog(df, label, valid=0.1, test=0.2, seed=seed)
    train = df[df.split=="train"]
    few = train.groupby(label).sample(n, random_state=seed).index
    labelled = df[df.index.isin(few) | (df.split=="valid")]
    others = train[~train.index.isin(few)].drop(columns=[label, "split"])
    return [o.reset_index(drop=True) for o in (labelled, others, df[df.split=="test"])]

def run(name, seed, way, args):
    label = LABEL[name]
    labelled,others,test = deal(catalog(name, args.size), label, seed, args.labels)
    dls = GalaxyDataLoaders.from_catalog(labelled, label, size=args.size, batch_size=args.batch_size, progress=False)
    learn = galaxy_learner(dls, args.encoder, seed=seed, unlabelled=others if way=="unlabelled" else None,
                           learning_rate=args.learning_rate)
    steps = math.ceil(min(len(others), MOST)/RATIO/dls.train.bs)             # of an epoch with those without labels
    epochs = args.epochs if way!="longer" else max(args.epochs, round(args.epochs*steps/len(dls.train)))
    start = time.perf_counter()
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(epochs)
    seconds = time.perf_counter()-start
    score = score_predictions(predict_catalog(learn, test, progress=False), test, dls.task)
    return dict(batch_size=dls.train.bs, n_labelled=len(dls.train_ds), n_unlabelled=len(others),
                n_valid=len(dls.valid_ds), n_test=score["n"],
                **{k: round(float(score[k]), 4) for k in SCORES}, seconds=round(seconds, 1), epochs=epochs,
                kept=learn.best_epoch["epoch"]+1,
                **{k: learn.params[k] for k in ("head_dropout_prob", "views")},
                pseudo_labels=[round(h["pseudo_labels"], 3) for h in learn.history if "pseudo_labels" in h],
                torch=torch.__version__, timm=timm.__version__, threads=torch.get_num_threads())

def rows(): return [json.loads(o) for o in RESULTS.read_text().splitlines()] if RESULTS.exists() else []

_asked = "data","seed","way","size","asked_epochs","labels","encoder","learning_rate"

def key(r): return *(r[k] for k in _asked),r.get("batch_size", 32)          # rows of before are of 32

def work(args):
    done = {key(r) for r in rows()}
    for seed in args.seeds:
        for name in LABEL:
            for way in WAYS:
                row = dict(data=name, seed=seed, way=way, size=args.size, asked_epochs=args.epochs, labels=args.labels,
                           encoder=args.encoder, learning_rate=args.learning_rate, batch_size=args.batch_size)
                if key(row) in done or not set(args.only)<={name, way, f"seed{seed}"}: continue
                row |= run(name, seed, way, args)
                with open(RESULTS, "a") as f: f.write(json.dumps(row)+"\n")
                print(name, f"seed {seed}", way, {k: row[k] for k in (*SCORES, "seconds", "kept")}, flush=True)

def table():
    "A row for each set and way: means over the seeds, and the smallest and the largest"
    df = pd.DataFrame(rows())
    df["batch_size"] = df.batch_size.fillna(32).astype(int)
    print("| data, rate, batch | labels + others | | seeds | accuracy | balanced accuracy | ROC AUC | seconds |")
    print("| --- "*8+"|")
    for (name,size,rate,batch),of in df.groupby(["data", "size", "learning_rate", "batch_size"], sort=False):
        for way in WAYS:
            o = of[of.way==way]
            if not len(o): continue
            said = [f"{o[k].mean():.3f} ({o[k].min():.3f} to {o[k].max():.3f})" for k in SCORES]
            galaxies = f"{o.n_labelled.iloc[0]} + {o.n_unlabelled.iloc[0]}"
            print(f"| {name}, {size} px, {rate:g}, {batch} | {galaxies} | {way} | {len(o)} | " + " | ".join(said)
                  + f" | {o.seconds.median():.0f} |")

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", nargs="+", default=[])
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--labels", type=int, default=10, help="labelled galaxies of each class")
    p.add_argument("--size", type=int, default=64)
    p.add_argument("--epochs", type=int, default=5)
    p.add_argument("--learning-rate", type=float, default=RATE, help="the default of galaxy_learner unless given")
    p.add_argument("--batch-size", type=int, default=32)
    p.add_argument("--encoder", default="tf_efficientnet_lite0")
    p.add_argument("--table", action="store_true")
    args = p.parse_args()
    if args.table: table()
    else: work(args)

if __name__=="__main__": main()
