import pytest
import torch
from torch.utils.data import DataLoader

import rekindle as rk
from rekindle.callbacks import PredictionWriter

pytestmark = pytest.mark.processes


@pytest.fixture
def predicting(net):
    class Predicting(net):
        asked = ()

        def predict_step(self, batch, batch_idx):
            self.asked = (*self.asked, batch_idx)
            if len(self.asked) > self.limit:
                raise KeyboardInterrupt
            logits = self(batch[0])
            return {"logits": logits, "half": logits.bfloat16(), "n": (len(logits), [None, "x"])}

        limit = 99

    rk.seed_everything(3)
    return Predicting(dropout=0.0)


def predict(model, data, tmp_path, size=4, **more):
    writer = PredictionWriter(tmp_path / "out", **more)
    trainer = rk.Trainer(callbacks=writer, root=tmp_path / "run", enable_progress_bar=False)
    return trainer.predict(model, DataLoader(data[0], size))


def logits(outputs):
    return torch.cat([output["logits"] for output in outputs])


def test_predictions_are_on_disk_in_the_order_of_the_data(data, predicting, tmp_path):
    returned = predict(predicting, data, tmp_path)
    ids, outputs = zip(*PredictionWriter.read(tmp_path / "out"), strict=True)
    assert sum(ids, []) == list(range(20))
    assert torch.equal(logits(outputs), logits(returned))
    assert torch.allclose(logits(outputs), predicting(data[0].tensors[0]).detach())
    assert outputs[4]["n"] == (4, [None, "x"])
    assert outputs[4]["half"].dtype == torch.bfloat16


def test_an_interrupted_prediction_goes_on_where_it_stopped(data, predicting, tmp_path):
    predicting.limit = 2
    with pytest.raises(KeyboardInterrupt):
        predict(predicting, data, tmp_path)
    predicting.asked, predicting.limit = (), 99
    returned = predict(predicting, data, tmp_path)
    assert predicting.asked == (2, 3, 4)
    assert torch.allclose(logits(returned), predicting(data[0].tensors[0]).detach())
    predicting.asked = ()
    # Batches of other samples are other batches.
    predict(predicting, data, tmp_path, size=5)
    assert predicting.asked == (0, 1, 2, 3)


def test_predictions_of_other_weights_are_not_taken_for_these(data, predicting, tmp_path):
    predict(predicting, data, tmp_path)
    with torch.no_grad():
        predicting.backbone.bias[0] += 1
    with pytest.raises(ValueError, match="holds predictions of other weights"):
        predict(predicting, data, tmp_path)
    predicting.asked = ()
    predict(predicting, data, tmp_path, overwrite=True)
    assert len(predicting.asked) == 5


def test_what_cannot_be_stored_is_named(data, predicting, tmp_path):
    predicting.predict_step = lambda batch, batch_idx: {1, 2}
    with pytest.raises(TypeError, match="returned a set; PredictionWriter stores"):
        predict(predicting, data, tmp_path)
    with pytest.raises(ValueError, match="write to a folder"):
        PredictionWriter("s3://bucket/x")
