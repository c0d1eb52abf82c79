"""What the defaults of `galaxy_learner` and `fine_tune` are worth: three data sets, four encoders, one parameter changed at a time.

    python benchmarks/defaults.py [--hours 1] [--worker 0/2] [--only gz1 lite0 ...]    runs what is not in the results yet
    python benchmarks/defaults.py --table                                             prints the tables of docs/defaults.md

Each run appends one line to benchmarks/results/defaults.jsonl, and is skipped where its line is there already. The split (70 % train, 10 %
valid, 20 % test), the head's first weights and the training follow the seed, so the settings of one seed differ in nothing but the
setting. The data are expected in ../shared/data, or in $ZOOFAST_DATA; the fourth encoder is made by benchmarks/pretrain.py.
"""
import argparse, json, os, time, warnings
from pathlib import Path
warnings.filterwarnings("ignore")
import fastai, timm
from sklearn.model_selection import train_test_split
from zoofast.all import *

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("ZOOFAST_DATA", HERE.parents[1]/"shared"/"data"))
RESULTS = HERE/"results"/"defaults.jsonl"
ENCODERS = {"lite0": "tf_efficientnet_lite0", "convnext": f"local-dir:{HERE.parent}/models/convnext_atto-simulated",
            "lite1": "tf_efficientnet_lite1", "lite2": "tf_efficientnet_lite2"}
SEEDS = {"mirabest": 5, "rings": 3, "gz1": 2}
SIZE = {("mirabest", "lite0"): 96, ("mirabest", "lite1"): 96, ("rings", "lite0"): 96}   # pixels; 64 for the others, to save time
GZ1 = {"train": 320, "valid": 60}        # of 1,255 and 180 galaxies, to save time; all 359 of the test

# Name: parameters of `galaxy_learner`, parameters of `fine_tune`; the most telling first
TIERS = [{
    "default": ({}, {}),
    "learning_rate=3e-5": (dict(learning_rate=3e-5), {}),
    "learning_rate=3e-4": (dict(learning_rate=3e-4), {}),
    "learning_rate=1e-3": (dict(learning_rate=1e-3), {}),
    "layer_decay=0.5": (dict(layer_decay=0.5), {}),
    "layer_decay=1": (dict(layer_decay=1.), {}),
    "freeze_epochs=0": ({}, dict(freeze_epochs=0)),
    "freeze_epochs=3": ({}, dict(freeze_epochs=3)),
    "head_only": (dict(training_mode="head_only"), {}),
}, {
    "freeze_epochs=10": ({}, dict(freeze_epochs=10)),
    "head_only, 20 epochs": (dict(training_mode="head_only"), dict(epochs=19)),
    "head_dropout_prob=0": (dict(head_dropout_prob=0.), {}),
    "head_dropout_prob=0.2": (dict(head_dropout_prob=0.2), {}),
    "flat_cos": ({}, dict(flat_cos=True)),
    "head_lr=1e-3": ({}, dict(head_lr=1e-3)),
}, {
    "15 epochs": ({}, dict(epochs=15)),
    "15 epochs, learning_rate=3e-4": (dict(learning_rate=3e-4), dict(epochs=15)),
    "weight_decay=0": (dict(weight_decay=0.), {}),
}]

def catalog(name):
    "A data set's catalogue and the name of its label"
    df = read_catalog(pd.read_csv(DATA/name/"labels.csv", dtype={"id_str": str}).pipe(lambda d: d if "id_str" in d else d.assign(id_str=d.index.astype(str))), image_dir=DATA/name)
    if name=="rings": return df,"ring"
    if name=="mirabest": return df,"label"
    df = df[df.class_name!="dont_know"].reset_index(drop=True)
    return df.assign(morphology=df.class_name.where(~df.class_name.str.startswith("spiral"), "spiral")),"morphology"

def split(name, seed):
    "Train and valid, test, label"
    df,label = catalog(name)
    df = split_catalog(df, label, valid=0.1, test=0.2, seed=seed)
    if name=="gz1":
        few = [train_test_split(d.index, train_size=GZ1[s], stratify=d[label], random_state=seed)[0] for s,d in df.groupby("split") if s in GZ1]
        df = df[(df.split=="test") | df.index.isin(np.concatenate(few))]
    return df[df.split!="test"].reset_index(drop=True),df[df.split=="test"].reset_index(drop=True),label

def run(name, encoder, params, fit, seed):
    use,test,label = split(name, seed)
    dls = GalaxyDataLoaders.from_catalog(use, label, size=SIZE.get((name, encoder), 64), batch_size=32, progress=False)
    learn = galaxy_learner(dls, ENCODERS[encoder], seed=seed, **params)
    fit = {"epochs": 5, **fit}
    with learn.no_bar(), learn.no_logging():
        if fit.pop("flat_cos", False):
            learn.fine_tune(0, freeze_epochs=1)
            learn.fit_flat_cos(fit["epochs"], learn.lr)
        else: learn.fine_tune(**fit)
    preds = predict_catalog(learn, test, progress=False)
    s = score_predictions(preds, test, dls.task)
    p = preds[dls.task.columns[1:]].to_numpy(float)[np.arange(len(test)), np.asarray(dls.task.encode(test))]
    return dict(n_train=int((use.split=="train").sum()), n_test=s["n"], accuracy=s["accuracy"], balanced_accuracy=s["balanced_accuracy"], roc_auc=s["roc_auc"], log_loss=float(-np.log(np.maximum(p, 1e-12)).mean()),
                train_loss=learn.history[-1]["train_loss"], params=learn.params | {k: v for k,v in fit.items()})

def jobs():
    "(data set, encoder, setting, seed); what comes first is a balanced part of the whole"
    for tier in range(len(TIERS)):
        for seed in range(max(SEEDS.values())):
            for encoder in ENCODERS:
                for name in (n for n in SEEDS if seed<SEEDS[n]):
                    for setting in TIERS[tier]: yield name,encoder,setting,seed

def done():
    rows = [json.loads(l) for l in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    return {(r["dataset"], r["encoder"], r["setting"], r["seed"]): r for r in rows}

def work(args):
    settings = {k: v for t in TIERS for k,v in t.items()}
    k,n = map(int, args.worker.split("/"))
    end = time.time() + 3600*args.hours
    for i,(name,encoder,setting,seed) in enumerate(jobs()):
        if time.time()>end: break
        if i%n!=k or (args.only and not {name, encoder, setting, f"seed{seed}"} & set(args.only)) or (name,encoder,setting,seed) in done(): continue
        start = time.time()
        row = dict(dataset=name, encoder=encoder, setting=setting, seed=seed, size=SIZE.get((name, encoder), 64)) | run(name, encoder, *settings[setting], seed)
        row |= dict(seconds=round(time.time()-start, 1), threads=torch.get_num_threads(), date=f"{pd.Timestamp.now():%Y-%m-%d}", torch=torch.__version__, timm=timm.__version__, fastai=fastai.__version__)
        with open(RESULTS, "a") as f: f.write(json.dumps(row)+"\n")          # one short line: whole or not at all
        print(f"{name:9} {encoder:9} {setting:30} {seed}  AUC {row['roc_auc']:.3f}  loss {row['log_loss']:.3f}  {row['seconds']:.0f} s", flush=True)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--hours", type=float, default=24, help="no run starts after this")
    p.add_argument("--worker", default="0/1", help="i/n: this one of n workers")
    p.add_argument("--only", nargs="+", help="runs with any of these data sets, encoders, settings or seed0, seed1, ...")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--table", action="store_true")
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    RESULTS.parent.mkdir(exist_ok=True)
    if args.table: table()
    else: work(args)

if __name__=="__main__": main()
