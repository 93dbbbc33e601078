//! Colours: on a terminal only, and never with NO_COLOR (<https://no-color.org>). No meaning rests on colour alone.

/// Whether and how to colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Escape sequences of ECMA-48.
    Coloured,
    /// Bare text.
    Plain,
}

/// What a piece of text means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// As it should be.
    Good,
    /// Look at it when there is time.
    Warning,
    /// Look at it now.
    Bad,
    /// Beside the point.
    Quiet,
    /// A heading.
    Strong,
    /// Nothing special.
    Normal,
}

impl Style {
    /// The style for standard output, from whether it is a terminal and the environment's NO_COLOR and TERM.
    pub fn choose(is_terminal: bool, no_color: Option<&str>, term: Option<&str>) -> Self {
        let forbidden = no_color.is_some_and(|value| !value.is_empty()) || term == Some("dumb");
        if is_terminal && !forbidden { Self::Coloured } else { Self::Plain }
    }

    /// `text` in the colour of its meaning.
    pub fn paint(self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Good => "32",
            Tone::Warning => "33",
            Tone::Bad => "1;31",
            Tone::Quiet => "2",
            Tone::Strong => "1",
            Tone::Normal => return text.to_owned(),
        };
        match self {
            Self::Coloured => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
            Self::Plain => text.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_for_terminals_that_were_not_told_otherwise() {
        assert_eq!(Style::choose(true, None, Some("xterm")), Style::Coloured);
        assert_eq!(Style::choose(true, Some(""), None), Style::Coloured);
        assert_eq!(Style::choose(true, Some("1"), None), Style::Plain);
        assert_eq!(Style::choose(true, None, Some("dumb")), Style::Plain);
        assert_eq!(Style::choose(false, None, None), Style::Plain);
        assert_eq!(Style::Plain.paint(Tone::Bad, "x"), "x");
        assert_eq!(Style::Coloured.paint(Tone::Bad, "x"), "\u{1b}[1;31mx\u{1b}[0m");
    }
}
