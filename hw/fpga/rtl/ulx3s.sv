// The ULX3S around a dataflow design: PLL, reset, serial link on the board's USB.
module ulx3s #(
  parameter int IN_BYTES = 1, OUT_BYTES = 1,
  parameter logic [63:0] HASH = '0,
  parameter int UART_DIV = 25
) (
  input  logic clk_25mhz, input logic ftdi_txd, output logic ftdi_rxd,
  output logic [7:0] led, output logic wifi_gpio0
);
  logic clk, locked;
  dp_clock clocks (.clk_in(clk_25mhz), .clk, .locked);
  assign wifi_gpio0 = 1'b1;                // keeps the ESP32 from rebooting the board
  logic [5:0] por = '0;
  always_ff @(posedge clk) if (locked && !(&por)) por <= por + 1'b1;
  wire rst = !(&por);
  logic [7:0] rx, tx;
  logic rx_valid, tx_valid, tx_ready;
  dp_uart_rx #(.DIV(UART_DIV)) receive (.clk, .rst, .rx(ftdi_txd), .data(rx), .valid(rx_valid));
  dp_uart_tx #(.DIV(UART_DIV)) transmit (.clk, .rst, .data(tx), .valid(tx_valid), .ready(tx_ready), .tx(ftdi_rxd));
  logic [IN_BYTES*8-1:0] in_data;
  logic [OUT_BYTES*8-1:0] out_data;
  logic restart;
  logic in_valid, in_ready, out_valid, out_ready;
  dp_link #(.IN_BYTES(IN_BYTES), .OUT_BYTES(OUT_BYTES), .HASH(HASH)) link (
    .clk, .rst, .restart, .rx_data(rx), .rx_valid, .tx_data(tx), .tx_valid, .tx_ready,
    .m_data(in_data), .m_valid(in_valid), .m_ready(in_ready), .s_data(out_data), .s_valid(out_valid), .s_ready(out_ready)
  );
  dataflow design_i (
    .clk, .rst_n(!rst && !restart), .s_axis_0_tdata(in_data), .s_axis_0_tvalid(in_valid), .s_axis_0_tready(in_ready),
    .m_axis_0_tdata(out_data), .m_axis_0_tvalid(out_valid), .m_axis_0_tready(out_ready), .m_axis_0_tlast()
  );
  assign led = {out_valid, out_ready, in_valid, in_ready, tx_valid, rx_valid, locked, !rst};
endmodule
