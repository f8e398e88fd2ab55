//! Columns of one cell.

use crate::theme::Glyphs;

/// The column for a value of at most `most`.
pub(super) fn bar(glyphs: &Glyphs, value: u64, most: u64) -> char {
    let steps = glyphs.sparkline.len() as u64;
    let step = (u128::from(value.min(most)) * u128::from(steps - 1)).div_ceil(u128::from(most.max(1)));
    glyphs.sparkline[usize::try_from(step).unwrap_or(0).min(glyphs.sparkline.len() - 1)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_nothing_and_little_is_something() {
        let glyphs = Glyphs::unicode();
        let bars: String = [0, 1, 500, 1000, 5000].map(|value| bar(&glyphs, value, 1000)).iter().collect();
        assert_eq!(bars, "▁▂▅██");
        assert_eq!(bar(&glyphs, 7, 0), '▁');
    }
}
