"""Galaxies a second: of each engine, and of a whole catalogue, beside zoobot 2.9.0 and fastai; and whether all give the
same classes.

    python benchmarks/predict.py [--data ../shared/data] [--encoders tf_efficientnet_lite0 convnext_nano] [--size 224]
        [--batch-size 32] [--rounds 7] [--only speed|classes|catalog] [--n 512] [--peers zoobot fastai]

Speed: images are bytes in memory; the engines take turns, `--rounds` times after two that warm up, and medians and
ratios are compared, of the time and, for a machine that others use too, of the CPU's time. "plain torch" is the encoder
as timm gives it: float32, contiguous, in inference mode. Weights are random, but for tf_efficientnet_lite0, which has
those of its package.
Classes: every galaxy of rings and of gz1 is predicted by tf_efficientnet_lite0 with a logistic regression of its
features as the head (fitted to half of the galaxies), with each engine.
Catalog: `--n` rows of jpgs (rings) from files to a table, all programs in turn with the same encoder, weights and head,
zoofast reading images as zoobot does; beside them the two limits, reading on all cores and the bare engine, of which
the slower one (`read`, or the engine) is what could be reached.
Results also go to benchmarks/results/predict.json.
"""
import argparse, copy, importlib.metadata, json, os, platform, tempfile, time, warnings
from datetime import date
from pathlib import Path
warnings.filterwarnings("ignore")
from rounds import DATA, Peer, galaxies, rates, ratios, show, take_turns, timed, zoobot_python
import numpy as np, torch
from zoofast.bundles.model import GalaxyModel, each_batch
from zoofast.catalog.read import read_catalog
from zoofast.tasks.classes import Classification
from zoofast.encoders.encoder import GalaxyNet
from zoofast.encoders.sources import create_encoder
from zoofast.encoders.engines import make_engine
from zoofast.images.reader import ImageReader

ENGINES = ["torch", "onnx", "openvino"]

def encoder_of(name, size): return create_encoder(name, size, pretrained=name=="tf_efficientnet_lite0").eval()

def speed(name, size, n, rounds):
    "Median seconds and seconds of CPU for a batch of `n` images, by program; the programs take turns"
    torch.manual_seed(0)
    enc,x = encoder_of(name, size),torch.randint(0, 256, (n,3,size,size), dtype=torch.uint8)
    last = copy.deepcopy(enc).to(memory_format=torch.channels_last)
    contiguous = copy.deepcopy(enc).to(memory_format=torch.contiguous_format)
    body,mean,std = contiguous.body,contiguous.mean,contiguous.std
    @torch.inference_mode()
    def plain(x): return body((x.float()/255-mean)/std)        # the encoder's own forward would make it channels_last
    @torch.inference_mode()
    def unfolded(x): return last(x.float().div_(255))
    run = {"plain torch": plain, "torch, channels_last": unfolded, **{e: make_engine(last, e) for e in ENGINES}}
    took = {k: [] for k in run}
    for i in range(rounds+2):
        for k,f in run.items():
            start = time.perf_counter(),time.process_time()
            out = f(x)
            if i>1: took[k].append((time.perf_counter()-start[0], time.process_time()-start[1]))
            assert (out-plain(x)).abs().max()<=1e-4*out.abs().max() if i==0 else True
    return {k: np.median(v, 0).tolist() for k,v in took.items()}

def logistic_head(net, features, y):
    "Make a logistic regression of half of the features the head"
    from sklearn.linear_model import LogisticRegression
    mean,std = features.mean(0),features.std(0)+1e-6
    lr = LogisticRegression(C=0.01, max_iter=500).fit(((features-mean)/std)[::2], y[::2])
    w,b = lr.coef_,lr.intercept_
    if len(w)==1: w,b = np.vstack([-w, w])/2,np.r_[-b, b]/2               # of two classes it has but one line
    w = w/std
    with torch.no_grad():
        net.head[1].weight.copy_(torch.as_tensor(w))
        net.head[1].bias.copy_(torch.as_tensor(b-w@mean))

def classes(data, folder, label, size):
    "How the engines' answers differ on all galaxies of a catalogue"
    df = read_catalog(next((data/folder).glob("*.csv")))
    task = Classification(label).fit(df)
    y = task.encode(df)
    y = y.numpy().reshape(len(df), -1)[:,0]
    net = GalaxyNet(encoder_of("tf_efficientnet_lite0", size), task.n_out)
    model = GalaxyModel(net, task, ImageReader(size), device="cpu")
    x = [o for o,_ in each_batch(model.reader, df.file_loc, 64, progress=False)]
    logistic_head(model.net, torch.cat([model.encode(b) for b in x]).numpy(), y)
    want = np.concatenate([model.samples(b)[0] for b in x])
    out = {"galaxies": len(want), "accuracy": float((want.argmax(1)==y)[1::2].mean())}
    for e in ENGINES:
        model.set_engine(e)
        got = np.concatenate([model.samples(b)[0] for b in x])
        other = int((got.argmax(1)!=want.argmax(1)).sum())
        largest = float(np.abs(got-want).max())
        out[e] = {"other_classes": other, "largest_difference": largest}
        print(f"{folder}: {e:9} {other} of {len(want)} galaxies get another class, largest difference of a probability "
              f"{largest:.1e}", flush=True)
    return out

def fastai_row(df, name, args):
    from fastai.vision.all import ImageDataLoaders, Resize, vision_learner
    dls = ImageDataLoaders.from_df(df, fn_col="file_loc", label_col="label", path="/", item_tfms=Resize(args.size),
                                   bs=args.batch_size, num_workers=0, device=torch.device("cpu"))
    learn = vision_learner(dls, name, pretrained=False)
    def predict():
        with learn.no_bar(): learn.get_preds(dl=dls.test_dl(df, bs=args.batch_size, num_workers=0))
    return lambda: timed(predict, len(df))

def zoobots_job(df, name, weights, net, args):
    "What zoobot is told: the same encoder, weights, head and files"
    head = dict(weight=net.head[1].weight.tolist(), bias=net.head[1].bias.tolist())
    return dict(encoder=name, weights=weights, head=head, files=df.file_loc.tolist(), labels=df.label.tolist(),
                split=["test"]*len(df), size=args.size, batch_size=args.batch_size, workers=0,
                threads=torch.get_num_threads())

def whole(name, args, tmp):
    "A catalogue from files to predictions"
    from zoofast.predict.table import predict_catalog
    from zoofast.bundles.zoobot import zoobot_reader
    df,weights = galaxies("rings", args.data, args.n, tmp),f"{tmp}/encoder.pt"
    df["id_str"],classes = df.index.astype(str),int(df.label.max())+1
    torch.manual_seed(0)
    net = GalaxyNet(encoder_of(name, args.size), classes)
    net.encoder.mean.zero_(); net.encoder.std.fill_(1)                   # zoobot gives its encoders images from 0 to 1
    torch.save(net.encoder.body.state_dict(), weights)
    model = GalaxyModel(net, Classification("label").fit(df), zoobot_reader(args.size, 3, "minimal"), device="cpu")
    x,answers = torch.stack([model.reader(f) for f in df.file_loc[:args.batch_size]]),{}
    def predict(engine):
        def run():
            answers[engine] = predict_catalog(model, df, engine=engine, batch_size=args.batch_size, progress=False)
        return lambda: timed(run, len(df))
    def read_all(): return sum(len(o) for o,_ in each_batch(model.reader, df.file_loc, args.batch_size, progress=False))
    def read(): return timed(read_all)
    engines = {e: make_engine(copy.deepcopy(net.encoder).eval(), e) for e in ENGINES}
    n = -(-len(df)//len(x))
    def engine(e): return lambda: timed(lambda: [engines[e](x) for _ in range(n)], n*len(x))
    rows = {
        "zoofast": predict("auto"),
        **{f"zoofast, {e}": predict(e) for e in args.engines},
        "read, all cores": read,
        **{f"bare engine, {e}": engine(e) for e in args.engines}}
    if "fastai" in args.peers: rows["fastai"] = fastai_row(df, name, args)
    if "zoobot" not in args.peers: return take_turns(rows, args.rounds),None
    job = zoobots_job(df, name, weights, net, args)
    with Peer(zoobot_python(), Path(__file__).with_name("zoobots.py"), job) as peer:
        took = take_turns({**rows, "zoobot": peer.rows["predict"]}, args.rounds)
    if isinstance(took["zoobot"][-1], str): raise SystemExit(took["zoobot"][-1])
    ours = answers["auto"].label_pred.to_numpy().astype(int)
    return took,int((ours!=np.array(took["zoobot"][-1]["classes"])).sum())

def speeds(args):
    "The results of `speed` for each encoder, which are also printed"
    found = {"batch_size": args.batch_size, "rounds": args.rounds}
    for name in args.encoders:
        took = speed(name, args.size, args.batch_size, args.rounds)
        plain = took["plain torch"]
        for what,at in (("second", 0), ("cpu_second", 1)):
            galaxies_per = found.setdefault(f"galaxies_per_{what}", {})
            over_plain = found.setdefault(f"over_plain_torch_per_{what}", {})
            galaxies_per[name] = {k: args.batch_size/v[at] for k,v in took.items()}
            over_plain[name] = {k: plain[at]/v[at] for k,v in took.items()}
        for k,v in took.items():
            print(f"{name:24} {k:22} {args.batch_size/v[0]:7.1f} galaxies/s, {plain[0]/v[0]:5.2f} x plain torch; "
                  f"by seconds of CPU {plain[1]/v[1]:5.2f} x", flush=True)
    return found

def catalog(name, args, tmp):
    "The results of `whole` for an encoder, which are also printed"
    took,differ = whole(name, args, tmp)
    found = rates(took)
    show(f"{name}, {args.n} jpgs", found, *(o for o in ("zoobot", "fastai") if o in found))
    if differ is not None: print(f"{differ} of {args.n} galaxies get another class than from zoobot", flush=True)
    return {"rounds": args.rounds, "n": args.n, "batch_size": args.batch_size, "rates": found,
            "over_zoobot": ratios(found, "zoobot") if "zoobot" in found else None, "other_classes_than_zoobot": differ}

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, default=DATA)
    p.add_argument("--encoders", nargs="+", default=["tf_efficientnet_lite0", "convnext_nano"])
    p.add_argument("--size", type=int, default=224)
    p.add_argument("--batch-size", type=int, default=32)
    p.add_argument("--rounds", type=int, default=7)
    p.add_argument("--only", choices=["speed", "classes", "catalog"],
                   help="one of the three; the results of the others stay")
    p.add_argument("--n", type=int, default=512, help="rows of the catalogue")
    p.add_argument("--engines", nargs="+", default=["torch", "openvino"], choices=ENGINES, help="of the catalogue")
    p.add_argument("--peers", nargs="*", default=["zoobot", "fastai"])
    args = p.parse_args()
    out = Path(__file__).resolve().parent/"results"/"predict.json"
    result = json.loads(out.read_text()) if args.only and out.is_file() else {}
    names = ("torch", "timm", "onnx", "onnxruntime", "openvino")
    about = {"date": str(date.today()), "cpu": torch.backends.cpu.get_cpu_capability(), "machine": platform.machine(),
             "threads": torch.get_num_threads(), "size": args.size, "load_before": os.getloadavg()[0],
             "versions": {o: importlib.metadata.version(o) for o in names}}
    print(f"{about['cpu']}, {about['threads']} threads, batches of {args.batch_size}, "
          f"load before {about['load_before']:.1f}")
    with tempfile.TemporaryDirectory() as tmp:
        os.environ["ZOOFAST_CACHE"] = tmp
        for name in args.encoders if args.only in (None, "catalog") else ():
            result.setdefault("catalog", {})[name] = {**about, **catalog(name, args, tmp)}
            out.write_text(json.dumps(result, indent=1)+"\n")
        if args.only in (None, "speed"): result["speed"] = {**about, **speeds(args)}
        if args.only in (None, "classes"):
            labels = {"rings": "ring", "gz1": "class_name"}
            found = {folder: classes(args.data, folder, label, args.size) for folder,label in labels.items()}
            result["classes"] = {**about, **found}
    out.write_text(json.dumps(result, indent=1)+"\n")
    if args.only not in (None, "classes"): return
    differ = sum(result["classes"][k][e]["other_classes"] for k in ("rings", "gz1") for e in ENGINES)
    if differ: raise SystemExit(f"{differ} galaxies get another class from an engine")

if __name__=="__main__": main()
