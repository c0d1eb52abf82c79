"""Find more like these: 20 examples of a rare class, a few hundred other galaxies, and who is first among the rest.

    python benchmarks/rare.py [--data gz1 nongalaxy simulated] [--seeds 0 1 2] [--others 300] [--size 96]
        [--epochs 5] [--encoder tf_efficientnet_lite0] [--ways rare similar probe fastai zoobot ...] [--note recipe]

Each way is shown the same 20 positives and 300 others, a fifth of them to validate with, and ranks all other galaxies.
What counts is the part of the remaining positives among its first 100 (and average precision). gz1: mergers in Galaxy
Zoo 1 (81 of 1,833; $ZOOFAST_DATA/gz1). nongalaxy: what is no galaxy, made rare (45 of 824). simulated: mergers, 60 of
2,000. `rare` is zoofast with `task=Rare`, all defaults; ways such as `rare balanced` change one thing of it (`WAYS`).
`similar` trains nothing: cosine similarity to the mean of the 20 in the frozen encoder's features; `probe` is logistic
regression on them. fastai is `vision_learner` and `fine_tune`, zoobot 2.9.0 its own trainer, in its own environment,
both with their defaults. Results also go to benchmarks/results/rare.json.
"""
import argparse, os, tempfile, time, warnings
from pathlib import Path
warnings.filterwarnings("ignore")
import numpy as np, pandas as pd, torch
from zoofast.all import (GalaxyDataLoaders, ImageReader, Rare, create_encoder, galaxy_learner, predict_catalog,
                         read_catalog, represent, split_catalog)
from rounds import DATA, Peer, about, keep, table, zoobot_python

EXAMPLES = 20

def survey(name, data, tmp):
    "Galaxies with a column `label`, 1 for those that are looked for"
    if name=="gz1":
        df = read_catalog(data/"gz1"/"labels.csv")
        return df.assign(label=(df.class_name=="merger").astype(int))
    if name=="nongalaxy":
        df = read_catalog(data/"nongalaxy"/"labels.csv")
        df = df.assign(label=(df.label=="nongalaxy").astype(int))
        return pd.concat([df[df.label==0], df[df.label==1].sample(45, random_state=0)])
    from zoofast.simulate import MORPHOLOGIES, simulate_survey
    others = [o for o in MORPHOLOGIES if o!="merger"]
    parts = [simulate_survey(Path(tmp)/k, n=n, size=128, seed=s, classes=c, fits=False, progress=False).assign(label=y)
             for k,n,s,c,y in (("others", 1940, 1, others, 0), ("mergers", 60, 2, ["merger"], 1))]
    df = pd.concat(parts)
    return df.assign(id_str=[f"{i:05d}" for i in range(len(df))])

def question(df, seed, others):
    "What is shown, split to train and validate, and the rest, which is to be ranked"
    df = df[["id_str", "file_loc", "label"]].sample(frac=1, random_state=seed)
    shown = pd.concat([df[df.label==1].head(EXAMPLES), df[df.label==0].head(others)])
    rest = df.drop(shown.index).sample(frac=1, random_state=seed).reset_index(drop=True)
    return split_catalog(shown.reset_index(drop=True), "label", valid=0.2, seed=seed),rest

# one thing of the recipe changed: arguments of `from_catalog`, of `galaxy_learner`, of `predict_catalog`
WAYS = {
    "rare": ({}, {}, {}),
    "rare plain": ({}, dict(loss_func="cross_entropy"), {}),
    "rare balanced": ({}, dict(class_weights="balanced"), {}),
    "rare focal": ({}, dict(loss_func="focal"), {}),
    "rare focal balanced": ({}, dict(loss_func="focal", class_weights="balanced"), {}),
    "rare sampled": (dict(sampling="balanced"), dict(loss_func="cross_entropy"), {}),
    "rare by precision": ({}, dict(monitor="average_precision"), {}),
    "rare tta=8": ({}, {}, dict(tta=8))}

def finetuned(shown, rest, seed, args, way):
    "Scores of zoofast's finetuned model"
    data,params,how = WAYS[way]
    dls = GalaxyDataLoaders.from_catalog(shown, task=Rare("label", 1), size=args.size, device="cpu", progress=False,
                                         **data)
    learn = galaxy_learner(dls, args.encoder, seed=seed, **params)
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(args.epochs)
    return predict_catalog(learn, rest, progress=False, **how).label_1.to_numpy()

def features(shown, rest, args):
    "Of the frozen encoder, centred and scaled by those of all galaxies"
    every = pd.concat([shown, rest], ignore_index=True)
    f = represent(args.encoder, every, reader=ImageReader(args.size), progress=False).filter(like="feat_").to_numpy()
    f = (f-f.mean(0))/(f.std(0)+1e-6)
    return f[:len(shown)],f[len(shown):]

def similar(shown, rest, seed, args, way):
    "Cosine similarity to the mean of the examples"
    a,b = (o/np.linalg.norm(o, axis=1, keepdims=True) for o in features(shown, rest, args))
    return b@a[shown.label.to_numpy()==1].mean(0)

def probe(shown, rest, seed, args, way):
    "Logistic regression whose strength cross-validation chooses"
    from sklearn.linear_model import LogisticRegressionCV
    a,b = features(shown, rest, args)
    model = LogisticRegressionCV(Cs=np.logspace(-5, 0, 11), cv=5, scoring="average_precision",
                                 class_weight="balanced", max_iter=2000)
    return model.fit(a, shown.label).decision_function(b)

def fastai(shown, rest, seed, args, way):
    "fastai's recipe: `vision_learner` on timm's encoder, its own transforms and head, `fine_tune`"
    from fastai.vision.all import ImageDataLoaders, Resize, aug_transforms, set_seed, vision_learner
    set_seed(seed)
    dls = ImageDataLoaders.from_df(shown.assign(v=shown.split=="valid"), fn_col="file_loc", label_col="label",
                                   valid_col="v", path="/", item_tfms=Resize(args.size), batch_tfms=aug_transforms(),
                                   bs=32, num_workers=0, device=torch.device("cpu"))
    learn = vision_learner(dls, args.encoder, pretrained=False)
    body,there = learn.model[0].model,torch.load(args.weights, weights_only=True)
    body.load_state_dict({k: v for k,v in there.items() if k in body.state_dict()})
    learn.freeze()
    with learn.no_bar(), learn.no_logging():
        learn.fine_tune(args.epochs)
        return learn.get_preds(dl=dls.test_dl(rest))[0][:,1].numpy()

def zoobot(shown, rest, seed, args, way):
    "zoobot's recipe, in its own environment"
    every = pd.concat([shown, rest.assign(split="test")])
    job = dict(encoder=args.encoder, weights=args.weights, files=every.file_loc.tolist(), labels=every.label.tolist(),
               split=every.split.tolist(), size=args.size, batch_size=32, workers=0, threads=torch.get_num_threads(),
               epochs=args.epochs, seeds=[seed])
    with Peer(zoobot_python(), Path(__file__).with_name("zoobots.py"), job) as peer:
        got = peer.rows[f"trained {seed}"]()
    if isinstance(got, str): raise SystemExit(got)
    return np.array(got["p"])[:,1]

PEERS = dict(similar=similar, probe=probe, fastai=fastai, zoobot=zoobot)

def run(df, name, seed, args, way):
    "Scores of one way of ranking, for one choice of examples"
    from sklearn.metrics import average_precision_score
    shown,rest = question(df, seed, args.others)
    start = time.perf_counter()
    s = PEERS.get(way, finetuned)(shown, rest, seed, args, way)
    first = np.argsort(-s, kind="stable")[:100]
    y = rest.label.to_numpy()
    return dict(data=name, way=way, seed=seed, ranked=len(y), positives=int(y.sum()),
                recall=float(y[first].sum()/y.sum()), average_precision=float(average_precision_score(y, s)),
                seconds=time.perf_counter()-start)

def say(runs):
    "A table for each survey: mean over the seeds, and the spread"
    for name,of in runs.groupby("data", sort=False):
        print(f"\n{name}: {of.positives.iloc[0]} positives among {of.ranked.iloc[0]}, {of.seed.nunique()} seeds\n")
        def both(v): return f"{v.mean():.3f} ± {v.std(ddof=0):.3f}"
        rows = [(way, both(o.recall), both(o.average_precision), o.seconds.mean())
                for way,o in of.groupby("way", sort=False)]
        table(["way", "recall in the first 100", "average precision", "seconds"], rows)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", nargs="+", default=["gz1", "nongalaxy", "simulated"])
    p.add_argument("--data-dir", type=Path, default=DATA)
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--others", type=int, default=300)
    p.add_argument("--epochs", type=int, default=5)
    p.add_argument("--encoder", default="tf_efficientnet_lite0")
    p.add_argument("--size", type=int, default=96)
    p.add_argument("--ways", nargs="+", default=["rare", *PEERS], choices=[*WAYS, *PEERS])
    p.add_argument("--note", default="ranking", help="under which the results are kept")
    args = p.parse_args()
    info,runs = about("fastai", **{k: getattr(args, k) for k in ("others", "epochs", "encoder", "size", "seeds")}),[]
    with tempfile.TemporaryDirectory() as tmp:
        os.environ["ZOOFAST_CACHE"],args.weights = f"{tmp}/cache",f"{tmp}/encoder.pt"
        torch.save(create_encoder(args.encoder, args.size).body.state_dict(), args.weights)
        for name in args.data:
            df = survey(name, args.data_dir, tmp)
            for seed in args.seeds:
                for way in args.ways:
                    runs.append(run(df, name, seed, args, way))
                    keep("rare", {args.note: {**info, "runs": runs}})
                    print({k: round(v, 3) if isinstance(v, float) else v for k,v in runs[-1].items()}, flush=True)
    say(pd.DataFrame(runs))

if __name__=="__main__": main()
