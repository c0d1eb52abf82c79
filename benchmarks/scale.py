"""What a galaxy costs as catalogues, images, batches and groups grow: seconds of CPU a galaxy, and peak memory.

    python benchmarks/scale.py [--rows 10000 100000 1000000] [--sizes 64 128 224] [--batch-sizes 8 32 64]
        [--encoder test_vit] [--pixels 32]
    python benchmarks/scale.py --pretended 1000000 10000000 100000000 [--shard-size N] [--out FOLDER]

Rows: `zoofast predict` of catalogues that point to 100 simulated galaxies again and again, with one of timm's smallest
encoders on small images, so that rows are what there is most of; each in a process of its own, whose peak memory is
noted. What a row costs is compared in one process: the shortest catalogue, `--rounds` times before and after each
longer one. Sizes and batch sizes: a training epoch of EfficientNet-Lite0 with random weights. Groups: a step with
coarse and fine blocks. Pretended: tables of galaxies without images, of which nothing is computed, so that what is
left is the table itself: shards, manifest, looks; half of it in one go, then the rest by a second one that finds the
first half. Results also go to benchmarks/results/scale.json.
"""
import argparse, json, os, resource, shutil, subprocess, sys, tempfile, time, warnings
from pathlib import Path
warnings.filterwarnings("ignore")
import numpy as np, pyarrow as pa, pyarrow.compute as pc, torch
from rounds import HERE, about, keep, table, timed

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

class Opened:
    "How many files Python opens, and folders it lists"
    n = 0
    @classmethod
    def count(cls, event, args): cls.n += event in ("open", "os.scandir", "os.listdir")

def pretended_rows(schema, a, n):
    "Rows of galaxies that do not exist: 19-digit names, paths, probabilities"
    ids = pa.array(np.arange(a, a+n)+587722981736579107).cast(pa.large_string())
    before,after,between = (pa.scalar(o, pa.large_string()) for o in ("/survey/", ".jpg", ""))
    p = np.random.default_rng(a).random(n, dtype=np.float32)
    return pa.table([ids, pc.binary_join_element_wise(before, ids, after, between), p, 1-p,
                     pa.nulls(n, pa.large_string())], schema)

def timed_look(shards, **kw):
    "Missing shards, seconds, and files opened"
    start,before = time.perf_counter(),Opened.n
    return shards.look(**kw),time.perf_counter()-start,Opened.n-before

def pretend(n, size, out):
    "Make a table of `n` galaxies; what its shards, looks, end and memory cost"
    from zoofast.catalog.write import SavedTable
    from zoofast.predict.shards import Shards
    schema = pa.schema([("id_str", pa.large_string()), ("file_loc", pa.large_string()), ("ring_yes", pa.float32()),
                        ("ring_no", pa.float32()), ("error", pa.large_string())])
    sys.addaudithook(Opened.count)
    about = dict(model={"name": "none"}, catalog={"rows": n}, parameters={})
    took,looks = [],[]
    def make(todo, other):
        for i,k in enumerate(todo):
            table,start = pretended_rows(schema, k*s.size, s.n(k)),time.perf_counter()
            s.claim(k)
            s.write(k, table)
            took.append(time.perf_counter()-start)
            if i%max(1, len(todo)//50)==0: looks.append(timed_look(other)[1:])
    mib = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
    s,before = Shards(out, schema, n, about, size),mib()
    half = s.look()[:len(s)//2]
    make(half, Shards(out, schema, n, about))
    start = time.perf_counter()
    s = Shards(out, schema, n, about)
    begun = time.perf_counter()-start
    rest,check,_ = timed_look(s, check=True)
    other = Shards(out, schema, n, about)
    first_look = timed_look(other)[1:]
    make(rest, other)
    assert s.look()==[]
    start = time.perf_counter()
    s.finish()
    end,start = time.perf_counter()-start,time.perf_counter()
    assert len(SavedTable(out))==n
    opened = time.perf_counter()-start
    ms = lambda some: 1e3*float(np.median(some))
    tenth = max(1, len(looks)//10)
    sizes = [o.stat().st_size for o in out.iterdir()]
    return dict(
        rows=n, shard_size=s.size, files=len(sizes), bytes=sum(sizes), manifest=(out/"_manifest.json").stat().st_size,
        mib=mib(), mib_more=mib()-before,
        ms_a_shard=ms(took), last_tenth_over_first=ms(took[-len(took)//10:])/ms(took[:max(1, len(took)//10)]),
        ms_a_look=ms([o[0] for o in looks]), ms_a_late_look=ms([o[0] for o in looks[-tenth:]]),
        files_a_look=max(o[1] for o in looks[1:]), first_look=first_look[0], files_first_look=first_look[1],
        begin=begun, check_half=check, finish=end, open_table=opened)

def pretending(args, tmp):
    "Each number of pretended rows in a process of its own"
    found = {}
    for n in args.pretended:
        out = Path(args.out or tmp)/f"pretended{n}"
        words = [sys.executable, "-W", "ignore", __file__, "--pretend-one", n, "--out", out]
        if args.shard_size: words += ["--shard-size", args.shard_size]
        said = subprocess.run([*map(str, words)], check=True, stdout=subprocess.PIPE, text=True).stdout
        shutil.rmtree(out, ignore_errors=True)
        one = json.loads(said.splitlines()[-1])
        found[f"{n} rows in shards of {one['shard_size']}"] = one
        print(n, one, flush=True)
    return found

def show_pretended(found):
    head = ["rows", "files", "MB", "manifest kB", "peak MiB over the start", "ms a shard", "last tenth / first",
            "ms a look", "files a look", "begin and first look s", "checksums of half s", "end s"]
    table(head, [(f"{o['rows']:,}", o["files"], o["bytes"]/1e6, o["manifest"]/1e3, o["mib_more"], o["ms_a_shard"],
                  o["last_tenth_over_first"], o["ms_a_late_look"], o["files_a_look"], o["begin"]+o["first_look"],
                  o["check_half"], o["finish"]) for o in found.values()])

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rows", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    p.add_argument("--sizes", type=int, nargs="*", default=[64, 128, 224])
    p.add_argument("--batch-sizes", type=int, nargs="*", default=[8, 32, 64])
    p.add_argument("--encoder", default="test_vit")
    p.add_argument("--pixels", type=int, default=32)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--pretended", type=int, nargs="*", help="rows of tables without images")
    p.add_argument("--shard-size", type=int)
    p.add_argument("--out", help="where the pretended tables are made, and deleted")
    p.add_argument("--pretend-one", type=int, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.pretend_one: return print(json.dumps(pretend(args.pretend_one, args.shard_size, Path(args.out))))
    if args.pretended:
        with tempfile.TemporaryDirectory() as tmp: found = pretending(args, tmp)
        show_pretended(found)
        before = json.loads((HERE/"results"/"scale.json").read_text()).get("pretended", {}).get("rows", {})
        return keep("scale", dict(pretended={**about(), "rows": {**before, **found}}))
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
