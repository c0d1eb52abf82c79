"""Images a second in training: zoofast, zoobot 2.9.0, fastai's vision_learner and timm's own loop, beside the bare
forward, backward and step.

    python benchmarks/train.py [--encoders tf_efficientnet_lite0 convnext_nano] [--data rings fits] [--batches 3]
        [--batch-size 32] [--size 224] [--rounds 5] [--peers zoobot fastai timm] [--compile] [--overhead]

All take turns in one run, zoofast, zoobot and the others in a process each: the same encoder (random weights, so that
batch normalisations are trained by all), images, batch size and size, each with its own augmentation and optimizer and
without worker processes, since the encoder keeps all cores busy. What is timed is the training part of the second epoch
of `--batches` batches, files in the system's page cache and zoofast's images in its own. "bare" is forward, backward
and a fused AdamW step on one batch in memory, in zoofast's precision and memory format, and with freed memory kept as
zoofast does: nothing can be faster. "bare, memory given back" leaves the C library's allocator alone, as all others do,
and "bare, contiguous" also has torch's usual format. `--compile` adds the bare step and zoofast with `compile=True`,
their kernels made before the clock starts. `--overhead` measures what 41 groups, schedule, recorder and log cost in a
step, and what the run's folder and Weights & Biases (offline) add, on an encoder that costs nothing itself; it puts
that beside the bare steps that earlier runs have found. Results also go to benchmarks/results/train.json.
"""
import argparse, json, os, sys, tempfile, time, warnings
from contextlib import ExitStack, nullcontext
from pathlib import Path
warnings.filterwarnings("ignore")
import numpy as np, pandas as pd, torch, torch.nn.functional as F
from torch import nn
from fastai.callback.core import Callback
from zoofast.all import GalaxyDataLoaders, create_encoder, galaxy_learner
from zoofast.encoders.compute import compile_encoder, memory_kept, set_layout
from zoofast.encoders.encoder import GalaxyNet
from rounds import (DATA, Peer, about, answer, cpu_seconds, galaxies, keep, rates, ratios, show, take_turns, timed,
                    zoobot_python)

def clocks():
    "Seconds, and seconds of CPU; a GPU has done all it was told to"
    if torch.cuda.is_available(): torch.cuda.synchronize()
    return time.perf_counter(),cpu_seconds()

class TrainingPart(Callback):
    "Seconds of the training part of the last epoch"
    order = 100
    def before_train(self): self.began = clocks()
    def after_train(self): self.took = [b-a for a,b in zip(self.began, clocks())]

def fit(learn):
    clock = TrainingPart()
    def one():
        with learn.no_bar(), learn.no_logging(), learn.added_cbs(clock): learn.fit_one_cycle(2)
        return dict(n=learn.dls.train.n, seconds=clock.took[0], cpu=clock.took[1])
    return one

def zoofast_row(df, encoder, args, **kwargs):
    dls = GalaxyDataLoaders.from_catalog(df, "label", size=args.size, batch_size=args.batch_size, device="cpu",
                                         progress=False)
    return fit(galaxy_learner(dls, encoder, pretrained=False, keep_best=False, **kwargs))

def bare(encoder, args, classes, channels_last=True, memory=memory_kept, compile=False):
    torch.manual_seed(0)
    net = set_layout(GalaxyNet(create_encoder(encoder, args.size, pretrained=False), classes), channels_last).train()
    if compile: compile_encoder(net, torch.device("cpu"))
    x,y = torch.rand(args.batch_size, 3, args.size, args.size),torch.randint(classes, (args.batch_size,))
    opt = torch.optim.AdamW(net.parameters(), 1e-4, fused=True)
    def epoch():
        for _ in range(args.batches):
            F.cross_entropy(net(x), y).backward()
            opt.step()
            opt.zero_grad()
    def one():
        with memory():
            epoch()
            return timed(epoch, args.batches*args.batch_size)
    return one

def fastai_row(df, encoder, args):
    from fastai.vision.all import ImageDataLoaders, Resize, aug_transforms, vision_learner, accuracy
    dls = ImageDataLoaders.from_df(df.assign(v=df.split=="valid"), fn_col="file_loc", label_col="label", valid_col="v",
                                   path="/", item_tfms=Resize(args.size), batch_tfms=aug_transforms(),
                                   bs=args.batch_size, num_workers=0, device=torch.device("cpu"))
    learn = vision_learner(dls, encoder, pretrained=False, metrics=accuracy)
    learn.unfreeze()
    return fit(learn)

def timm_row(df, encoder, args, classes):
    "The loop of timm's training script: its transforms, loader and optimizer"
    import timm
    from PIL import Image
    from timm.data import create_loader
    class Images(torch.utils.data.Dataset):
        transform = None
        def __init__(self, df): self.files,self.y = df.file_loc.tolist(),df.label.tolist()
        def __len__(self): return len(self.files)
        def __getitem__(self, i): return self.transform(Image.open(self.files[i]).convert("RGB")),self.y[i]
    loader = create_loader(Images(df[df.split=="train"]), (3, args.size, args.size), args.batch_size, is_training=True,
                           use_prefetcher=False, num_workers=0, persistent_workers=False, device=torch.device("cpu"))
    net = timm.create_model(encoder, pretrained=False, num_classes=classes).train()
    opt = timm.optim.create_optimizer_v2(net, opt="adamw", lr=1e-4, weight_decay=0.05)
    loss = nn.CrossEntropyLoss()
    seen = timm.utils.AverageMeter()
    def epoch():
        for x,y in loader:
            l = loss(net(x), y)
            l.backward()
            opt.step()
            opt.zero_grad()
            seen.update(l.item(), len(y))
    def one():
        epoch()
        return timed(epoch, args.batches*args.batch_size)
    return one

def others(job):
    "What runs in a process whose memory zoofast has not touched"
    args,df = argparse.Namespace(**job["args"]),pd.DataFrame(job["df"])
    torch.set_num_threads(job["threads"])
    encoder,classes = job["encoder"],job["classes"]
    rows = {
        "bare, memory given back": bare(encoder, args, classes, memory=nullcontext),
        "bare, contiguous": bare(encoder, args, classes, False, nullcontext)}
    if job["kind"]=="fits": return rows,{}                  # Pillow, which both others use, does not read FITS
    if "fastai" in args.peers: rows["fastai"] = fastai_row(df, encoder, args)
    if "timm" in args.peers: rows["timm"] = timm_row(df, encoder, args, classes)
    return rows,{}

def compare(encoder, kind, args, tmp):
    "Rates of all programs for one encoder and one kind of data"
    n = args.batches*args.batch_size
    df = galaxies(kind, args.data_dir, n+8, tmp).assign(split=["train"]*n+["valid"]*8)
    df["id_str"],classes = [str(i) for i in range(len(df))],int(df.label.max())+1
    rows = {"bare": bare(encoder, args, classes), "zoofast": zoofast_row(df, encoder, args)}
    if args.compile:
        rows["bare, compiled"] = bare(encoder, args, classes, compile=True)
        rows["zoofast, compiled"] = zoofast_row(df, encoder, args, compile=True)
    shared = dict(encoder=encoder, threads=torch.get_num_threads())
    asked = {k: getattr(args, k) for k in ("batches", "batch_size", "size", "peers")}
    with ExitStack() as peers:
        job = dict(shared, kind=kind, classes=classes, args=asked, df=df.to_dict("list"))
        rows |= peers.enter_context(Peer(sys.executable, Path(__file__), job)).rows
        if "zoobot" in args.peers:
            job = dict(shared, files=df.file_loc.tolist(), labels=df.label.tolist(), split=df.split.tolist(),
                       size=args.size, batch_size=args.batch_size, workers=0)
            zoobots = Peer(zoobot_python(), Path(__file__).with_name("zoobots.py"), job)
            rows["zoobot"] = peers.enter_context(zoobots).rows["train"]
        took = take_turns(rows, args.rounds)
    for k in [k for k,v in took.items() if isinstance(v[-1], str)]: print(f"{k}: {took.pop(k)[-1]}")
    return rates(took)

class Forty(nn.Module):
    "An encoder of 40 blocks that cost next to nothing"
    def __init__(self):
        super().__init__()
        self.stem,self.blocks = nn.Conv2d(3, 8, 8, 8),nn.Sequential(*[nn.Linear(8, 8) for _ in range(39)])
    def forward(self, x): return self.blocks(self.stem(x).mean((2,3)))
    def group_matcher(self, coarse=False): return dict(stem=r"^stem", blocks=r"^blocks\.(\d+)")

def overhead(args, tmp, steps=100):
    "Seconds of CPU that a step costs beside its arithmetic with 41 groups, and with these tracked"
    df = galaxies("simulated", n=60, tmp=tmp, size=32)
    train = pd.concat([df.head(50).assign(split="train")]*(steps*4//50))
    df = pd.concat([train, df.tail(10).assign(split="valid")]).reset_index(drop=True)
    df["id_str"] = df.index.astype(str)
    dls = GalaxyDataLoaders.from_catalog(df, "label", size=32, batch_size=4, augment=None, device="cpu", progress=False)
    folders = {f"WANDB_{k}_DIR": f"{tmp}/wandb" for k in ("CACHE", "DATA", "CONFIG", "ARTIFACT")}
    os.environ |= {"WANDB_SILENT": "true", **folders}
    learn = galaxy_learner(dls, Forty(), keep_best=False)
    tracked = galaxy_learner(dls, Forty(), keep_best=False, save_dir=f"{tmp}/run", wandb="offline")
    batches,net = list(dls.train),GalaxyNet(create_encoder(Forty(), 32), 5)
    opt = torch.optim.AdamW(net.parameters(), 1e-4, fused=True)
    def plain():
        for x,y in dls.train:
            F.cross_entropy(net(x), y).backward()
            opt.step()
            opt.zero_grad()
    rows = {"plain": lambda: timed(plain, len(batches)), "learner": fit(learn), "tracked": fit(tracked)}
    took = take_turns(rows, args.rounds)
    tracked.wandb_log.finish()
    per = {k: float(np.median([o["cpu"] for o in v]))/len(batches) for k,v in took.items()}
    return dict(groups=len(learn.opt.hypers), steps=len(batches), plain_step=per["plain"],
                learner_adds=per["learner"]-per["plain"], tracked_adds=per["tracked"]-per["plain"])

def of_a_step(adds):
    "Encoder and data -> part of the CPU time of its bare step, where benchmarks/results has it"
    path = Path(__file__).parent/"results"/"train.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    return {k: adds*v["rates"]["bare"]["per_cpu_second"]/v["batch_size"] for k,v in found.items() if "rates" in v}

def show_overhead(got):
    "Print what a step costs beside its arithmetic, also as a part of the bare steps; adds these parts to `got`"
    print(f"{got['groups']} groups, {got['steps']} steps an epoch; the encoder's own step: "
          f"{1e3*got['plain_step']:.2f} ms of CPU")
    whats = {"learner_adds": "layer decay, schedule, recorder and log", "tracked_adds": "the same, run folder and W&B"}
    for k,what in whats.items():
        parts = got[f"{k}_of_a_step"] = of_a_step(got[k])
        said = "".join(f"; {v:.2%} of the bare step of {n}" for n,v in parts.items())
        print(f"{what}: {1e3*got[k]:.2f} ms of CPU a step{said}")

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--encoders", nargs="+", default=["tf_efficientnet_lite0", "convnext_nano"])
    p.add_argument("--data", nargs="+", default=["rings", "fits"], help="rings, gz1, simulated, fits")
    p.add_argument("--data-dir", type=Path, default=DATA)
    p.add_argument("--batches", type=int, default=3)
    p.add_argument("--batch-size", type=int, default=32)
    p.add_argument("--size", type=int, default=224)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--peers", nargs="*", default=["zoobot", "fastai", "timm"])
    p.add_argument("--compile", action="store_true", help="also with compiled kernels")
    p.add_argument("--overhead", action="store_true", help="only what a step costs beside its arithmetic")
    args = p.parse_args()
    info = about("fastai", batch_size=args.batch_size, size=args.size, rounds=args.rounds, batches=args.batches)
    print(f"{info['cpu']}, {info['instructions']}, {info['threads']} threads, load before {info['load_before']}\n")
    with tempfile.TemporaryDirectory() as tmp:
        os.environ["ZOOFAST_CACHE"] = f"{tmp}/cache"
        if args.overhead:
            got = overhead(args, tmp)
            show_overhead(got)
            return keep("train", dict(overhead={**info, **got}))
        for encoder in args.encoders:
            for kind in args.data:
                got = compare(encoder, kind, args, tmp)
                show(f"{encoder}, {kind}", got, "bare", *(o for o in ("zoobot", "fastai") if o in got))
                result = {**info, "load_after": os.getloadavg()[0], "rates": got, "over_bare": ratios(got, "bare")}
                keep("train", {f"{encoder} {kind}": result})

if __name__=="__main__":
    if not answer(others): main()
