"""Time of a training step in bf16 and fp16 over that in fp32, on this device, for encoders of several kinds.

    python benchmarks/precision.py [--encoders resnet18 ...] [--size 224] [--batch-size 32] [--rounds 5]

Random weights, images already on the device, forward and backward; the precisions take turns, and medians are compared.
Below 1, mixed precision is faster. `precision="auto"` follows what this prints.
"""
import argparse, time, warnings
warnings.filterwarnings("ignore")
import numpy as np, torch
from zoofast.encoders.encoder import GalaxyNet
from zoofast.encoders.sources import create_encoder
ENCODERS = ["tf_efficientnet_lite0", "resnet18", "resnet50", "mobilenetv3_large_100", "convnext_nano",
            "vit_small_patch16_224", "swin_tiny_patch4_window7_224", "maxvit_rmlp_nano_rw_256"]

def step(net, x, y):
    net.zero_grad()
    torch.nn.functional.cross_entropy(net(x), y).backward()
    if x.is_cuda: torch.cuda.synchronize()

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--encoders", nargs="+", default=ENCODERS)
    p.add_argument("--size", type=int, default=224)
    p.add_argument("--batch-size", type=int, default=32)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--precisions", nargs="+", default=["bf16"], choices=["bf16", "fp16"])
    args = p.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    types = {None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
    use = [None, *(t for t,n in types.items() if n in args.precisions)]
    name = torch.cuda.get_device_name() if device=="cuda" else torch.backends.cpu.get_cpu_capability()
    print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, batches of {args.batch_size}, "
          f"{args.rounds} rounds")
    for name in args.encoders:
        size = 256 if "256" in name else args.size
        net = GalaxyNet(create_encoder(name, size, pretrained=False), 4)
        net = net.to(device, memory_format=torch.channels_last).train()
        x = torch.rand(args.batch_size, 3, size, size, device=device)
        y = torch.randint(4, (args.batch_size,), device=device)
        took = {t: [] for t in use}
        for i in range(args.rounds+1):
            for t in use:
                net.autocast = t
                start = time.perf_counter()
                step(net, x, y)
                if i: took[t].append(time.perf_counter()-start)       # the first round warms up
        ratios = " ".join(f"{types[t]}/fp32 {np.median(took[t])/np.median(took[None]):.2f}" for t in use[1:])
        print(f"{name:32} {size} px {ratios}", flush=True)

if __name__=="__main__": main()
