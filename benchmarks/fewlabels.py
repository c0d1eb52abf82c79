"""Few labels: what recipes reach with 50, 200 and 1,000 of them, on several sets, several seeds.

    python benchmarks/fewlabels.py [--data gz1 rings ...] [--labels 50 200 1000] [--seeds 0 1 2] [--recipes default ...]
        [--encoder tf_efficientnet_lite0] [--size 64] [--epochs 5] [--hours 1]
        runs what is not in the results yet; each run is a line of benchmarks/results/fewlabels.jsonl
    python benchmarks/fewlabels.py --table [BASE] [--encoder tf_efficientnet_lite0]
        prints the tables of docs/defaults.md

A fifth of the galaxies is the test, whatever the number of labels; a tenth of them, or as many as a seventh of the
labels, are for validation. The sets are expected in ../shared/data, or in $ZOOFAST_DATA; `simulated` is made. Every
recipe but the probe trains the same encoder for the same epochs.
"""
import argparse, json, tempfile, time, warnings
from pathlib import Path
warnings.filterwarnings("ignore")
import numpy as np, pandas as pd, torch
from sklearn.model_selection import train_test_split
from zoofast.all import (GalaxyDataLoaders, create_encoder, galaxy_learner, predict_catalog, read_catalog,
                         score_predictions, simulate_survey, split_catalog)
from zoofast.training.probe import FitHead
from defaults import print_table
from rounds import DATA, Peer, about, zoobot_python

RESULTS = Path(__file__).with_name("results")/"fewlabels.jsonl"
SETS = ("gz1", "rings", "mirabest", "nongalaxy", "simulated")
METRICS = {"accuracy": "accuracy", "balanced_accuracy": "balanced", "roc_auc": "AUC", "log_loss": "log loss"}

# Recipe -> parameters of `galaxy_learner` (and `batch_size`), of `fine_tune`, and of `predict_catalog`
KEPT = dict(bn_stats="keep", learning_rate=5e-4)   # the default of less than 32 batches, from which recipes differ
EARLIER = dict(learning_rate=1e-4, head_dropout_prob=.5, views=0, ema=0.)
RECIPES = {
    "default": ({}, {}, {}),
    "kept": ({}, {}, {}),
    "renewed": (dict(bn_stats="renew", learning_rate=2e-3), {}, {}),
    "kept, tta=8": ({}, {}, dict(tta=8)),
    "earlier default": (EARLIER, dict(head_lr=5e-3), {}),
    "ema=0": (dict(ema=0.), {}, {}),
    "ema=0, head_lr=5e-3": (dict(ema=0.), dict(head_lr=5e-3), {}),
    "batch_size=8": (dict(batch_size=8), {}, {}),
    "batch_size=16": (dict(batch_size=16), {}, {}),
    "epochs=20": ({}, dict(epochs=20), {}),
    "fitted start, ema=0.98": ({}, "fitted", {}),          # the encoder moves from the probe on
    "fitted start": (dict(ema=0.), "fitted", {}),
    "fitted start, balanced": (dict(ema=0., class_weights="balanced"), "fitted", {}),
    "learning_rate=1e-4": (dict(learning_rate=1e-4), {}, {}),
    "learning_rate=1e-3": (dict(learning_rate=1e-3), {}, {}),
    "head_dropout_prob=0.5": (dict(head_dropout_prob=.5), {}, {}),
    "ema=0.99": (dict(ema=.99), {}, {}),
    "balanced": (dict(class_weights="balanced"), {}, {}),
    "freeze_epochs=4": ({}, dict(freeze_epochs=4), {}),
    "freeze_epochs=10": ({}, dict(freeze_epochs=10), {}),
    "flat_cos": ({}, dict(fit="flat_cos"), {}),
    "probe": (dict(training_mode="head_only"), dict(freeze_epochs=1, epochs=0), {}),
    "fastai": None, "zoobot": None}

def catalog(name, seed):
    "A set's catalogue and the name of its label"
    if name=="simulated":
        folder = Path(tempfile.gettempdir())/"zoofast-fewlabels"
        if not (folder/"catalog.csv").exists(): simulate_survey(folder, n=2000, size=64, seed=7, progress=False)
        return read_catalog(folder/"catalog.csv"),"morphology"
    df = pd.read_csv(DATA/name/"labels.csv", dtype={"id_str": str})
    if "id_str" not in df: df = df.assign(id_str=df.index.astype(str))
    df = read_catalog(df, image_dir=DATA/name)
    if name!="gz1": return df,"ring" if name=="rings" else "label"
    df = df[df.class_name!="dont_know"].reset_index(drop=True)
    return df.assign(morphology=df.class_name.where(~df.class_name.str.startswith("spiral"), "spiral")),"morphology"

def few(name, n, seed):
    "Labelled galaxies, train and valid; test galaxies; the label"
    df,label = catalog(name, seed)
    df = split_catalog(df, label, valid=.1, test=.2, seed=seed)
    def some(part, k):
        rows = df[df.split==part]
        if k>=len(rows): return rows
        return train_test_split(rows, train_size=k, stratify=rows[label], random_state=seed)[0]
    valid = max(n//7, 2*df[label].nunique())
    use = pd.concat([some("train", n), some("valid", valid)]).sort_index().reset_index(drop=True)
    return use,df[df.split=="test"].reset_index(drop=True),label

def scores(preds, test, task):
    s = score_predictions(preds, test, task)
    p = preds[task.columns[1:]].to_numpy(float)[np.arange(len(test)), np.asarray(task.encode(test))]
    return {k: s[k] for k in METRICS if k in s} | dict(log_loss=float(-np.log(np.maximum(p, 1e-12)).mean()))

def from_the_probe(learn, epochs):
    "Finetuning that starts from the head that is fitted to its end, in one call, so that the best epoch is of both"
    with learn.one_run():
        learn.freeze()
        learn.fit_one_cycle(1, cbs=FitHead())
        learn.unfreeze()
        learn.fit_one_cycle(epochs, learn.lr)

def ours(use, test, label, recipe, seed, args):
    "A row of the results"
    params,fit,predict = RECIPES[recipe]
    params = {"batch_size": 32, **({} if recipe=="default" else KEPT), **params}
    size = dict(size=args.size, batch_size=params.pop("batch_size"))
    dls = GalaxyDataLoaders.from_catalog(use, label, **size, progress=False)
    start = time.perf_counter()
    learn = galaxy_learner(dls, args.encoder, seed=seed, **params)
    with learn.no_bar(), learn.no_logging():
        if fit=="fitted": from_the_probe(learn, args.epochs)
        else: learn.fine_tune(**{"epochs": args.epochs, **fit})
    took = time.perf_counter()-start
    row = scores(predict_catalog(learn, test, progress=False, **predict), test, dls.task)
    worth = learn.worth._asdict() | dict(verdict=learn.worth.verdict) if learn.worth else None
    return row | dict(seconds=round(took, 1), worth=worth, kept=learn.in_hand["epoch"])

def fastais(use, test, label, seed, args):
    "The same with fastai's own learner and defaults on timm's encoder"
    from fastai.vision.all import (CategoryBlock, ColSplitter, DataBlock, ImageBlock, Resize, aug_transforms, set_seed,
                                   vision_learner)
    set_seed(seed, reproducible=True)
    block = DataBlock((ImageBlock, CategoryBlock), get_x=lambda r: r.file_loc, get_y=lambda r: str(r[label]),
                      splitter=ColSplitter("is_valid"), item_tfms=Resize(args.size),
                      batch_tfms=aug_transforms(size=args.size))
    dls = block.dataloaders(use.assign(is_valid=use.split=="valid"), bs=min(32, len(use)//3), num_workers=0)
    start = time.perf_counter()
    learn = vision_learner(dls, args.encoder, pretrained=False)
    body,theirs = learn.model[0].model,create_encoder(args.encoder, args.size).body.state_dict()
    body.load_state_dict({k: v for k,v in theirs.items() if k in body.state_dict()})   # the same weights, without a hub
    learn.freeze()
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(args.epochs)
    took = time.perf_counter()-start
    with learn.no_bar(): p = learn.get_preds(dl=dls.test_dl(test))[0].numpy().astype(float)
    from zoofast.all import Classification
    task = Classification(label).fit(use)
    order = [list(dls.vocab).index(str(c)) for c in task.classes]
    return scores(task.to_frame(p[:,order]), test, task) | dict(seconds=round(took, 1))

def pictures(files, folder):
    "FITS files as the pictures that fastai makes of them: zoobot gives them one channel, and its encoder has three"
    from fastai.vision.all import PILImage
    def picture(i, f):
        if Path(f).suffix!=".fits": return f
        PILImage.create(f).save(folder/f"{i}.png")
        return str(folder/f"{i}.png")
    return [picture(i, f) for i,f in enumerate(files)]

def zoobots(use, test, label, seed, args):
    "The same of zoobot 2.9.0, in its own environment, with its own trainer and defaults"
    from zoofast.all import Classification
    task = Classification(label).fit(use)
    every = pd.concat([use, test.assign(split="test")])
    with tempfile.TemporaryDirectory() as tmp:
        weights = Path(tmp)/"weights.pt"
        torch.save(create_encoder(args.encoder, args.size).body.state_dict(), weights)
        job = dict(encoder=args.encoder, weights=str(weights), files=pictures(every.file_loc, Path(tmp)), seeds=[seed],
                   labels=np.asarray(task.encode(every)).tolist(), split=every.split.tolist(), size=args.size,
                   batch_size=min(32, int((use.split=="train").sum())//3), workers=0, epochs=args.epochs,
                   threads=torch.get_num_threads())
        start = time.perf_counter()
        with Peer(zoobot_python(), Path(__file__).with_name("zoobots.py"), job) as peer:
            got = peer.rows[f"trained {seed}"]()
    if isinstance(got, str): raise SystemExit(got)
    return scores(task.to_frame(np.array(got["p"])), test, task) | dict(seconds=round(time.perf_counter()-start, 1))

PEERS = dict(fastai=fastais, zoobot=zoobots)

def done():
    rows = [json.loads(l) for l in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    return {(r["data"], r["labels"], r["seed"], r["recipe"], r["encoder"], r["size"], r["epochs"]): r for r in rows}

def work(args):
    end,machine = time.time()+3600*args.hours,about("fastai")
    jobs = [(d, n, s, r) for s in args.seeds for d in args.data for n in args.labels for r in args.recipes]
    for name,n,seed,recipe in jobs:
        if time.time()>end: return
        key = name,n,seed,recipe,args.encoder,args.size,args.epochs
        if key in done(): continue
        use,test,label = few(name, n, seed)
        trained = int((use.split=="train").sum())
        if n>50 and trained<.8*n and n!=args.labels[-1]: continue             # the set has not so many
        run = PEERS.get(recipe, lambda *o: ours(*o[:3], recipe, *o[3:]))
        row = dict(zip(("data", "labels", "seed", "recipe", "encoder", "size", "epochs"), key))
        row |= dict(trained=trained, tested=len(test), **run(use, test, label, seed, args))
        row |= dict(date=machine["date"], threads=torch.get_num_threads(), versions=machine["versions"])
        with open(RESULTS, "a") as f: f.write(json.dumps(row)+"\n")
        print(*key[:4], *(f"{k} {row[k]:.3f}" for k in METRICS if k in row), f"{row['seconds']:.0f} s", flush=True)

def tables(base, encoder):
    df = pd.DataFrame(done().values())
    df = df[df.encoder==encoder]
    print(f"{len(df)} runs, {df.date.min()} to {df.date.max()}\n")
    def cell(v): return f"{v.mean():.3f} ± {v.std(ddof=0):.3f}"
    for (data,labels,encoder,size),part in df.groupby(["data", "labels", "encoder", "size"], sort=False):
        print(f"{data}, {part.trained.iloc[0]} labels, {encoder.split('/')[-1]}, {size} px, {part.tested.iloc[0]} to "
              "test; mean and spread over the seeds:\n")
        rows = []
        for recipe in [r for r in RECIPES if r in set(part.recipe)]:
            of = part[part.recipe==recipe]
            rows.append([recipe, len(of), *(cell(of[k]) for k in METRICS)])
        print_table(["recipe", "seeds", *METRICS.values()], rows)
    both = df.pivot_table(index=["data", "labels", "seed", "encoder", "size"], columns="recipe", values=list(METRICS))
    for n in [None, *sorted(df.labels.unique())]:
        some = both if n is None else both.xs(n, level="labels", drop_level=False)
        print(f"Difference to {base!r} over all pairs{f' of {n} labels' if n else ''}, mean and standard error:\n")
        rows = []
        for recipe in [r for r in RECIPES if r in set(df.recipe) and r!=base]:
            d = {k: (some[k][recipe]-some[k][base]).dropna() for k in METRICS}
            if len(d["accuracy"])<2: continue
            rows.append([recipe, len(d["accuracy"]), *(f"{v.mean():+.3f} ± {v.std()/len(v)**.5:.3f}"
                                                       for v in d.values())])
        print_table(["recipe", "pairs", *METRICS.values()], rows)
    verdicts = [r["verdict"] for r in df.worth.dropna()]
    print("Verdicts of finetuning beside the probe, on the validation galaxies:",
          ", ".join(f"{v} {verdicts.count(v)}" for v in ("better", "equal", "worse")))

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", nargs="+", default=list(SETS), choices=SETS)
    p.add_argument("--labels", type=int, nargs="+", default=[50, 200, 1000])
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    p.add_argument("--encoder", default="tf_efficientnet_lite0")
    p.add_argument("--size", type=int, default=64)
    p.add_argument("--epochs", type=int, default=5)
    p.add_argument("--hours", type=float, default=np.inf)
    p.add_argument("--table", nargs="?", const="kept", choices=list(RECIPES), metavar="BASE")
    args = p.parse_args()
    tables(args.table, args.encoder) if args.table else work(args)

if __name__=="__main__": main()
