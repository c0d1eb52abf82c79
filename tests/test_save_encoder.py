"An encoder saved for timm: timm alone loads it, and its features are the same"
import json
from types import SimpleNamespace
import pytest, timm, torch
from zoofast.all import *
from zoofast.encoders.encoder import GalaxyNet

@pytest.mark.slow(but=2)
@pytest.mark.parametrize('arch,channels,size', [
    ('test_efficientnet', 3, 64),
    ('test_efficientnet', 1, 64),
    ('test_vit', 3, 64),
    ('test_vit', 5, 96),
    ('test_convnext', 5, 64),
    ('resnet10t', 1, 64),
    ('swin_tiny_patch4_window7_224', 3, 64),
    ('swinv2_cr_tiny_ns_224', 1, 64),
    ('test_nfnet', 3, 64),
    ('deit_tiny_distilled_patch16_224', 3, 48),
    ('maxvit_rmlp_pico_rw_256', 3, 64),
    ('mixer_s32_224', 3, 64),
    ('levit_128s', 3, 224)])
def test_timm_gives_the_same_features(survey, tmp_path, arch, channels, size):
    enc = create_encoder(arch, size, channels, pretrained=False)
    if channels in (1, 3):
        dls = GalaxyDataLoaders.from_catalog(survey[1], 'morphology', reader=ImageReader(size, channels), cache=None,
                                             progress=False)
        learn = galaxy_learner(dls, enc, precision='fp32')
    else: learn = SimpleNamespace(net=GalaxyNet(enc, 2))                # no image of the survey has five bands
    GalaxyLearner.save_encoder(learn, tmp_path/'e')
    body = timm.create_model(f'local-dir:{tmp_path}/e', pretrained=True, num_classes=0).eval()
    enc,again = learn.net.encoder.cpu().eval(),create_encoder(f'local-dir:{tmp_path}/e', size, channels).eval()
    mean,std = (torch.tensor(body.pretrained_cfg[k]).view(1, -1, 1, 1) for k in ('mean', 'std'))
    x = torch.rand(2, channels, size, size)
    with torch.no_grad():
        assert torch.allclose(body((x-mean)/std), enc(x), atol=1e-5)
        assert torch.allclose(again(x), enc(x), atol=1e-5)
    cfg = timm.data.resolve_data_config({}, model=body)
    assert cfg['input_size']==(channels, size, size) and len(cfg['mean'])==channels
    saved = json.loads((tmp_path/'e'/'config.json').read_text())
    assert body.num_classes==0 and saved['num_features']==enc.num_features
