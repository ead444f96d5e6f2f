import pytest

from diffmoe_scale.evaluation.metrics.measures import parse_measures


def test_short_names_are_of_the_network_that_defines_them():
    found = parse_measures(["fid", "sfid", "fd:timm", "kid:clip", "cmmd", "is"])
    pairs = [(measure.statistic, measure.backbone) for measure in found]
    assert [measure.name for measure in found] == ["fid", "sfid", "fd:timm", "kid:clip", "cmmd", "is"]
    assert pairs == [
        ("fd", "inception"),
        ("sfd", "inception"),
        ("fd", "timm"),
        ("kid", "clip"),
        ("cmmd", "clip"),
        ("is", "inception"),
    ]


@pytest.mark.parametrize(
    ("names", "error"),
    [
        ([], "no metric is asked for; expected some of fid, sfid"),
        (["fit"], "'fit' is no metric; expected one of fid, sfid, is"),
        (["fd"], "'fd' is no metric; expected one of .* NAME:NETWORK as fd:timm"),
        (["fd:vgg"], "'fd:vgg' is no metric"),
        (["sfd:timm"], "metric 'sfd:timm': sfd is of inception alone"),
        (["is:clip"], "metric 'is:clip': is is of inception or timm alone"),
        (["fid", "kid", "fd:inception"], r"metric 'fd:inception' is asked for twice \('fid'\)"),
    ],
)
def test_what_is_no_metric_is_refused(names, error):
    with pytest.raises(ValueError, match=error):
        parse_measures(names)
