import numpy as np

from tureen.pictures.ship import drawn_ship


def test_the_ship_is_a_picture_of_several_colours():
    ship = drawn_ship()
    assert (ship.mode, ship.size) == ("RGB", (320, 320))
    assert len(np.unique(np.asarray(ship).reshape(-1, 3), axis=0)) == 6
