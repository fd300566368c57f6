from rhapsody.backends import discovery, registry


def test_names_of_rhapsody_py_are_the_registry() -> None:
    for name in discovery.__all__:
        assert getattr(discovery, name) is getattr(registry, name)
