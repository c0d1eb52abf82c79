"""What a galaxy costs as catalogues, images, batches and groups grow: seconds of CPU a galaxy, and peak memory.

    python benchmarks/scale.py [--rows 10000 100000 1000000] [--sizes 64 128 224] [--batch-sizes 8 32 64]
        [--encoder test_vit] [--pixels 32]

Rows: `zoofast predict` of catalogues that point to 100 simulated galaxies again and again, with one of timm's smallest
encoders on small images, so that rows are what there is most of; each in a process of its own, whose peak memory is
noted. What a row costs is compared in one process: the shortest catalogue, `--rounds` times before and after each
longer one. Sizes and batch sizes: a training epoch of EfficientNet-Lite0 with random weights. Groups: a step with
coarse and fine blocks. Results also go to benchmarks/results/scale.json.
"""
import argparse, os, shutil, tempfile, warnings
from pathlib import Path
warnings.filterwarnings("ignore")
import numpy as np, torch
from rounds import about, keep, table, timed

def predicting(args, tmp):
    "Peak memory and seconds of `zoofast predict`, and what a galaxy costs, by rows"
    from survey import command, write_catalog
    from zoofast.all import (Classification, GalaxyModel, ImageReader, create_encoder, predict_catalog, read_catalog,
                             simulate_survey)
    from zoofast.bundles.bundle import write_bundle
    from zoofast.encoders.encoder import GalaxyNet
    df = read_catalog(simulate_survey(tmp/"survey", n=100, size=args.pixels, fits=False, progress=False))
    task = Classification("morphology").fit(df)
    net = GalaxyNet(create_encoder(args.encoder, args.pixels, pretrained=False), task.n_out)
    model = GalaxyModel(net, task, ImageReader(args.pixels))
    write_bundle(tmp/"bundle", model)
    catalogs,found = {n: write_catalog(tmp/f"c{n}", df.file_loc.tolist(), n, "parquet") for n in sorted(args.rows)},{}
    def cost(n):
        "Milliseconds of CPU a galaxy"
        took = timed(lambda: predict_catalog(model, catalogs[n], tmp/"out", batch_size=256, progress=False), n)
        shutil.rmtree(tmp/"out")
        return 1e3*took["cpu"]/n
    torch.set_num_threads(1)
    few = min(catalogs)
    cost(few)
    for n in catalogs:
        mb,seconds,code,_ = command(tmp/"bundle", catalogs[n], tmp/f"out{n}", 0)
        if code: raise SystemExit(f"zoofast predict ended with {code}")
        around = [cost(few) for _ in range(args.rounds)]
        here = cost(n)
        around += [cost(few) for _ in range(args.rounds)]
        shortest = float(np.median(around))
        found[n] = dict(mib=mb, seconds=seconds, cpu_ms_a_galaxy=here, cpu_ms_a_galaxy_of_the_shortest=shortest,
                        over_the_shortest=here/shortest)
        print(f"{n} rows: {seconds:.0f} s, {mb:.0f} MiB, {here:.3g} ms of CPU a galaxy, "
              f"beside {[round(float(o), 3) for o in around]}", flush=True)
    return found

def training(args, tmp):
    "Galaxies a second of CPU in training, by size, by batch size and by groups"
    from train import fit
    from zoofast.all import GalaxyDataLoaders, galaxy_learner, simulate_survey
    df,found = simulate_survey(tmp/"train", n=72, size=max(args.sizes), fits=False, progress=False),{}
    df["split"] = ["train"]*64+["valid"]*8
    def one(size, bs, **kw):
        dls = GalaxyDataLoaders.from_catalog(df, "morphology", size=size, batch_size=bs, device="cpu", progress=False)
        run = fit(galaxy_learner(dls, "tf_efficientnet_lite0", pretrained=False, keep_best=False, **kw))
        run()
        took = [run() for _ in range(args.rounds)]
        return float(np.median([o["cpu"]/o["n"] for o in took]))
    small = min(args.sizes)
    for size in args.sizes:
        ms = 1e3*one(size, 32)
        found[f"{size} px"] = dict(cpu_ms_a_galaxy=ms, cpu_ms_a_megapixel=ms/(size*size/1e6))
    for bs in args.batch_sizes: found[f"{small} px, batches of {bs}"] = dict(cpu_ms_a_galaxy=1e3*one(small, bs))
    for blocks in ("coarse", "fine"):
        found[f"{small} px, {blocks} groups"] = dict(cpu_ms_a_galaxy=1e3*one(small, 32, blocks=blocks))
    return found

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rows", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    p.add_argument("--sizes", type=int, nargs="*", default=[64, 128, 224])
    p.add_argument("--batch-sizes", type=int, nargs="*", default=[8, 32, 64])
    p.add_argument("--encoder", default="test_vit")
    p.add_argument("--pixels", type=int, default=32)
    p.add_argument("--rounds", type=int, default=5)
    args = p.parse_args()
    info = about("fastai", encoder=args.encoder, pixels=args.pixels)
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        os.environ["ZOOFAST_CACHE"] = str(tmp/"cache")
        if args.rows:
            found = predicting(args, tmp)
            rows = [(f"{n:,}", o["mib"], o["seconds"], o["cpu_ms_a_galaxy"], o["over_the_shortest"])
                    for n,o in found.items()]
            table(["rows", "peak MiB", "seconds", "ms of CPU a galaxy", "over the shortest"], rows)
            keep("scale", dict(predicting={**info, "rows": found}))
        if args.sizes:
            found = training(args, tmp)
            rows = [(k, o["cpu_ms_a_galaxy"], o.get("cpu_ms_a_megapixel")) for k,o in found.items()]
            table(["training", "ms of CPU a galaxy", "a megapixel"], rows)
            keep("scale", dict(training={**info, "rows": found}))

if __name__=="__main__": main()
