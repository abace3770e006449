import reidkit


def test_public_names():
    assert reidkit.__all__ == sorted(reidkit.__all__, key=lambda name: (name.islower(), name))
    for name in reidkit.__all__:
        assert getattr(reidkit, name).__doc__, name


def test_modules_are_not_hidden_by_names():
    import reidkit.evaluate

    assert reidkit.evaluate.RANKS == (1, 5, 10)
