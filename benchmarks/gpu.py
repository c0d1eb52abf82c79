"""What fits on one GPU in ten minutes: images a second in training and prediction, a catalogue of jpgs to a table, the
loader alone, and the share of the time that the device is busy.

    python benchmarks/gpu.py [--encoders convnext_nano vit_small_patch16_224 efficientnet_b0] [--batch-size 128]
        [--size 224] [--batches 20] [--rounds 5] [--compile convnext_nano] [--smoke]

Beside zoofast: fastai's vision_learner with mixed precision and one worker process a core, and the bare loop (forward,
backward, fused AdamW step in zoofast's precision and memory format, on one batch that lies on the device). Encoders
have random weights; galaxies are simulated, decoded images resident on the device (`cache="device"`) or, in a row of
its own, in memory that is pinned batch by batch. All take turns. An epoch is `--batches` batches, the second of a fit;
in prediction as many images, bytes in memory (`zoofast`), or jpgs from files to a table (`zoofast, catalogue`, and
fastai's `get_preds`, read by a worker process a core). Busy is the part of the time of an epoch in which the device
runs a kernel, as torch's profiler sees it. `--smoke` runs everything once on the CPU with tiny sizes, to see that it
works, and keeps nothing. Results go to benchmarks/results/gpu.json.
"""
import argparse, os, tempfile, time, warnings
from pathlib import Path
warnings.filterwarnings("ignore")
import pandas as pd, torch, torch.nn.functional as F
from zoofast.all import GalaxyDataLoaders, GalaxyModel, create_encoder, galaxy_learner, predict_catalog, simulate_survey
from zoofast.encoders.compute import PRECISIONS, pick_precision, set_layout
from zoofast.encoders.encoder import GalaxyNet
from rounds import about, cores, keep, rates, ratios, show, take_turns, timed
from train import fit

def wait(): torch.cuda.synchronize() if torch.cuda.is_available() else None

def catalogue(args, tmp):
    "As many rows as the batches need, of a few hundred simulated galaxies"
    df = simulate_survey(Path(tmp)/"survey", n=64 if args.smoke else 512, size=args.size, fits=False, progress=False)
    n,few = args.batches*args.batch_size,df.tail(8).assign(split="valid")
    train = pd.concat([df.head(len(df)-8)]*-(-n//(len(df)-8))).head(n).assign(split="train")
    return pd.concat([train, few]).reset_index(drop=True).assign(id_str=lambda d: d.index.astype(str))

def bare(encoder, args, device, train):
    "Forward, backward and step of one batch on the device; or the forward alone, as prediction runs it"
    torch.manual_seed(0)
    net = GalaxyNet(create_encoder(encoder, args.size, pretrained=False), 5)
    net.autocast = PRECISIONS[pick_precision("auto", device, net)] if train else None
    net = set_layout(net.to(device)).train(train)
    x = torch.rand(args.batch_size, 3, args.size, args.size, device=device)
    y = torch.randint(5, (args.batch_size,), device=device)
    opt = torch.optim.AdamW(net.parameters(), 1e-4, fused=True)
    def epoch():
        for _ in range(args.batches):
            F.cross_entropy(net(x), y).backward()
            opt.step()
            opt.zero_grad()
    @torch.inference_mode()
    def predict():
        for _ in range(args.batches): net(x)
    return lambda: timed(epoch if train else predict, args.batches*args.batch_size, wait)

def fastai_row(df, encoder, args, device):
    from fastai.vision.all import ImageDataLoaders, Resize, aug_transforms, vision_learner
    df = df.assign(v=df.split=="valid")
    dls = ImageDataLoaders.from_df(df, fn_col="file_loc", label_col="morphology", valid_col="v", path="/",
                                   item_tfms=Resize(args.size), batch_tfms=aug_transforms(), bs=args.batch_size,
                                   num_workers=0 if args.smoke else cores(), device=device)
    learn = vision_learner(dls, encoder, pretrained=False)
    learn.unfreeze()
    if device.type=="cuda": learn.to_bf16()
    def predict():
        with learn.no_bar(), learn.no_logging(): learn.get_preds(dl=dls.test_dl(df, bs=args.batch_size))
    return fit(learn),lambda: timed(predict, len(df), wait)

def busy(f):
    "Share of the time in which the device runs a kernel"
    if not torch.cuda.is_available(): return None
    from torch.profiler import ProfilerActivity, profile
    f(); wait()
    with profile(activities=[ProfilerActivity.CUDA]) as p:
        start = time.perf_counter()
        f(); wait()
        took = time.perf_counter()-start
    kernels = [e for e in p.events() if e.device_type==torch.autograd.DeviceType.CUDA]
    spans = sorted((e.time_range.start, e.time_range.end) for e in kernels)
    total,end = 0.,0.
    for a,b in spans:
        total += max(0., b-max(a, end))
        end = max(end, b)
    return total/1e6/took

def training_rows(df, encoder, resident, pinned, args, device):
    "What takes turns in training; the learner on resident images, and how fastai's predicts"
    def learner(dls, **kwargs): return galaxy_learner(dls, encoder, pretrained=False, keep_best=False, **kwargs)
    def drain(dls): return lambda: timed(lambda: sum(len(y) for _,y in dls.train), None, wait)
    learners = {"zoofast": learner(resident), "zoofast, pinned": learner(pinned)}
    if encoder in args.compile: learners["zoofast, compiled"] = learner(resident, compile=True)
    fastai,fastai_predict = fastai_row(df, encoder, args, device)
    rows = {
        "bare": bare(encoder, args, device, True),
        **{k: fit(v) for k,v in learners.items()},
        "fastai": fastai,
        "loader alone": drain(resident),
        "loader alone, pinned": drain(pinned)}
    return rows,learners["zoofast"],fastai_predict

def prediction_rows(df, encoder, learn, fastai_predict, args, device):
    "What takes turns in prediction"
    dls = learn.dls
    model = GalaxyModel(learn.net, dls.task, dls.reader, device=device)
    x = torch.randint(0, 256, (args.batch_size, 3, args.size, args.size), dtype=torch.uint8)
    def encode():
        for _ in range(args.batches): model.encode(x)
    def predict(): predict_catalog(model, df, batch_size=args.batch_size, progress=False)
    model.set_engine("auto", args.batches*args.batch_size*100)
    return {
        "bare": bare(encoder, args, device, False),
        "zoofast": lambda: timed(encode, args.batches*args.batch_size, wait),
        "zoofast, catalogue": lambda: timed(predict, len(df), wait),
        "fastai": fastai_predict}

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--encoders", nargs="+", default=["convnext_nano", "vit_small_patch16_224", "efficientnet_b0"])
    p.add_argument("--batch-size", type=int, default=128)
    p.add_argument("--size", type=int, default=224)
    p.add_argument("--batches", type=int, default=20)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--compile", nargs="*", default=[], help="encoders that are also trained with compile=True")
    p.add_argument("--smoke", action="store_true")
    args = p.parse_args()
    if args.smoke:
        args.encoders = ["test_vit", "test_efficientnet"]
        args.batch_size,args.size = 4,160
        args.batches,args.rounds = 2,1
    elif not torch.cuda.is_available(): raise SystemExit("no GPU; --smoke tries everything on the CPU")
    device = torch.device("cuda" if torch.cuda.is_available() and not args.smoke else "cpu")
    info = about("fastai", **vars(args))
    where = info["device"] if device.type=="cuda" else "CPU, smoke test"
    print(f"{where}, torch {info['versions']['torch']}, batches of {args.batch_size}, {args.size} px\n")
    with tempfile.TemporaryDirectory() as tmp:
        os.environ["ZOOFAST_CACHE"] = f"{tmp}/cache"
        df = catalogue(args, tmp)
        def loaders(cache):
            return GalaxyDataLoaders.from_catalog(df, "morphology", size=args.size, batch_size=args.batch_size,
                                                  device=device, cache=cache, progress=False)
        resident,pinned = loaders("device"),loaders("memory")
        for encoder in args.encoders:
            rows,learn,fastai_predict = training_rows(df, encoder, resident, pinned, args, device)
            train = rates(take_turns(rows, args.rounds))
            predict = rates(take_turns(prediction_rows(df, encoder, learn, fastai_predict, args, device), args.rounds))
            share = {k: busy(rows[k]) for k in ("bare", "zoofast", "zoofast, pinned", "fastai")}
            show(f"{encoder}, training", train, "bare", "fastai")
            show(f"{encoder}, prediction", predict, "bare", "fastai")
            said = ", ".join(f"{k} {v:.0%}" for k,v in share.items() if v is not None)
            print("the device is busy: "+said+"\n")
            result = {**info, "training": train, "over_bare": ratios(train, "bare"), "prediction": predict,
                      "busy": share}
            if not args.smoke: keep("gpu", {encoder: result})

if __name__=="__main__": main()
