"Encoders for one channel, three, and more; grey and colour in one catalogue; radio galaxies from FITS"
import shutil
import numpy as np, pandas as pd, pytest, timm, torch
from astropy.io import fits
from PIL import Image
from zoofast.data.loaders import GalaxyDataLoaders
from zoofast.encoders.sources import create_encoder
from zoofast.images.reader import ImageReader
from zoofast.training.finetune import galaxy_learner
import zoofast.bundles.save      # noqa: F401, gives the learner its save_bundle
from zoofast.predict.table import predict_catalog

@pytest.fixture(scope='module')
def grey_encoder(tmp_path_factory):
    "A greyscale encoder as zoobot publishes them: timm's folder with in_chans=1 in its weights and configuration"
    folder = tmp_path_factory.mktemp('greyscale')
    torch.manual_seed(0)
    body = timm.create_model('resnet18', num_classes=0, in_chans=1)
    timm.models.save_for_hf(body, folder, model_args=dict(in_chans=1), safe_serialization=True)
    return folder

def test_one_channel_sees_what_three_equal_ones_see():
    x = torch.rand(2, 1, 64, 64)
    one,three = (create_encoder('tf_efficientnet_lite0', 64, c).eval() for c in (1, 3))
    torch.testing.assert_close(one(x), three(x.expand(-1, 3, -1, -1)), rtol=1e-3, atol=1e-4)

@pytest.mark.parametrize('channels', [1, 3, 5])
def test_greyscale_encoders(grey_encoder, channels):
    "A grey picture gives the features of the published encoder, whatever the number of channels it is repeated in"
    body = timm.create_model(f'local-dir:{grey_encoder}', num_classes=0, in_chans=1, pretrained=True).eval()
    enc = create_encoder(f'local-dir:{grey_encoder}', 64, channels).eval()
    x = torch.rand(2, 1, 64, 64)
    grey = body((x-enc.mean.mean())/enc.std.mean())
    torch.testing.assert_close(enc(x.expand(-1, channels, -1, -1)), grey, rtol=1e-3, atol=1e-4)

def test_greyscale_encoders_from_a_hub_cache(grey_encoder, tmp_path, monkeypatch):
    repo,commit = tmp_path/'hub'/'models--mwalmsley--zoobot-encoder-greyscale-resnet18','0'*40
    (repo/'refs').mkdir(parents=True); (repo/'refs'/'main').write_text(commit)
    shutil.copytree(grey_encoder, repo/'snapshots'/commit)
    import huggingface_hub.constants as hub
    monkeypatch.setattr(hub, 'HF_HUB_CACHE', str(tmp_path/'hub')); monkeypatch.setattr(hub, 'HF_HUB_OFFLINE', True)
    enc = create_encoder('hf_hub:mwalmsley/zoobot-encoder-greyscale-resnet18', 64, 1)
    assert torch.equal(enc.body.conv1.weight, create_encoder(f'local-dir:{grey_encoder}', 64, 1).body.conv1.weight)

@pytest.mark.slow
@pytest.mark.parametrize('channels', [1, 3, 4])
def test_training_and_predicting_with_any_number_of_bands(survey, tmp_path, channels):
    df = survey[1].head(40).copy()
    for i,row in enumerate(df.itertuples()):
        grey = np.asarray(Image.open(row.file_loc).convert('L')).astype(np.float32)[::-1]
        fits.writeto(tmp_path/f'{i}.fits', np.stack([grey*(k+1) for k in range(4)]))
    df['file_loc'] = [str(tmp_path/f'{i}.fits') for i in range(len(df))]
    df['barred'] = np.arange(len(df))%2
    bands = {1: (2,), 3: (3,1,0), 4: None}[channels]
    reader = ImageReader(64, channels, bands=bands)
    few = df[['id_str','file_loc','barred']]
    dls = GalaxyDataLoaders.from_catalog(few, 'barred', reader=reader, batch_size=8, progress=False)
    learn = galaxy_learner(dls, 'resnet18', pretrained=False, precision='fp32')
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(1)
    assert dls.one_batch()[0].shape==(8, channels, 64, 64)
    learn.save_bundle(tmp_path/'bundle')
    again = predict_catalog(tmp_path/'bundle', df)
    assert again.error.isna().all()
    np.testing.assert_allclose(again.barred_1, predict_catalog(learn, df).barred_1, rtol=1e-4)

def test_grey_and_colour_and_fits_in_one_catalogue(survey, tmp_path):
    rows = []
    for i,row in enumerate(survey[1].head(30).itertuples()):
        im,file = Image.open(row.file_loc),tmp_path/f'{i}.{["png","jpg","tiff","fits"][i%4]}'
        if i%4==3: fits.writeto(file, np.asarray(im.convert('L'))[::-1].astype(np.int16))
        else: im.convert(['LA','L','RGB'][i%3]  if i%4==0 else ['L','RGB'][i%2]).save(file)
        rows.append(dict(id_str=str(i), file_loc=str(file), y=i%2))
    dls = GalaxyDataLoaders.from_catalog(pd.DataFrame(rows), 'y', size=64, batch_size=8, progress=False)
    assert dls.one_batch()[0].shape==(8,3,64,64)

@pytest.mark.slow
@pytest.mark.parametrize('channels', [3, 1])
def test_radio_galaxies_from_fits(data_dir, channels):
    "mirabest, 120 FIRST images of one band: FR I and FR II are told apart well above chance in a few epochs"
    df = pd.read_csv(data_dir/'mirabest'/'labels.csv')
    df = df.assign(id_str=df.file_loc, file_loc=[str((data_dir/'mirabest'/f).resolve()) for f in df.file_loc])
    reader = ImageReader(96, channels, 'linear')
    dls = GalaxyDataLoaders.from_catalog(df, 'label', reader=reader, valid=0.3, seed=1, cache='memory', progress=False)
    learn = galaxy_learner(dls, 'tf_efficientnet_lite0', seed=1)
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(5, freeze_epochs=3)
    assert max(o['roc_auc'] for o in learn.history)>0.7
