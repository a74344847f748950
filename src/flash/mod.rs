//! From an image to a card.
