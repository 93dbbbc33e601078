//! Waiting with a limit for something to become true, and saying what was seen last if it does not.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// The pause between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// Calls `look` until it succeeds and returns what it gave. After `limit` the failure tells `what` was waited for and
/// the last error of `look`. Looks at least once; a look that itself blocks makes the wait longer.
pub fn eventually<T>(limit: Duration, what: &str, mut look: impl FnMut() -> Result<T>) -> Result<T> {
    let begin = Instant::now();
    loop {
        match look() {
            Ok(value) => return Ok(value),
            Err(error) if begin.elapsed() >= limit => {
                return Err(error).with_context(|| format!("{what} did not happen within {limit:?}; last seen"));
            }
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::bail;

    #[test]
    fn the_last_look_is_in_the_failure() {
        let mut looks = 0;
        let never: Result<()> = eventually(Duration::from_millis(50), "a full moon", || {
            looks += 1;
            bail!("{looks} looks, still dark")
        });
        assert_eq!(
            format!("{:#}", never.unwrap_err()),
            format!("a full moon did not happen within 50ms; last seen: {looks} looks, still dark")
        );
        assert_eq!(eventually(Duration::ZERO, "now", || Ok(7)).unwrap(), 7);
    }
}
