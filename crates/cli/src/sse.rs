//! Server-sent events (WHATWG HTML, section 9.2) as far as the panel's event stream needs them: the data of each event.

/// Longest event that is kept; the panel's are far shorter.
const EVENT_BYTES_MAX: usize = 1 << 20;

/// Puts lines together into events. Feed it a line at a time, without its line ending.
#[derive(Debug, Default)]
pub struct Events {
    data: String,
}

impl Events {
    /// Takes one line; gives the data of an event when the line ends one.
    pub fn line(&mut self, line: &str) -> Option<String> {
        if line.is_empty() {
            return Some(std::mem::take(&mut self.data)).filter(|data| !data.is_empty());
        }
        if let Some(data) = line.strip_prefix("data:") {
            let data = data.strip_prefix(' ').unwrap_or(data);
            if self.data.len() + data.len() < EVENT_BYTES_MAX {
                if !self.data.is_empty() {
                    self.data.push('\n');
                }
                self.data.push_str(data);
            }
        }
        // Comments (a colon first) keep the connection alive; ids and names are in the data already.
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_events() {
        let mut events = Events::default();
        let lines = [": hello", "", "id: 3", "event: node", "data: {\"id\":", "data:3}", "", "data: x", ""];
        let seen: Vec<String> = lines.iter().filter_map(|line| events.line(line)).collect();
        assert_eq!(seen, ["{\"id\":\n3}", "x"]);
    }
}
